"""Everything of an adapter that changes, declared once: reset, saved, loaded and moved with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tta import optim
from tta.containers import map_tensors, nbytes, share
from tta.errors import AdapterError


class Stateful(nn.Module):
    """A module whose mutable state is declared, and the state that ``reset`` goes back to."""

    name: ClassVar[str] = ""
    _initial: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[str, Any] = {}
        self._optimizers: dict[str, dict[str, Any]] = {}
        self._mutable_modules: list[str] = []

    def add_state(self, name: str, default: Any) -> None:
        """Declare a mutable value, kept as ``self.<name>``: reset, saved, loaded and moved with us.

        Args:
            name: Attribute name.
            default: A number, a tensor, or a plain container of them.
        """
        if name in self._states or hasattr(self, name):
            raise AdapterError(f"{self.name}: state {name!r} is declared twice")
        self._states[name] = None
        setattr(self, name, default)

    def add_module_state(self, name: str, module: nn.Module) -> None:
        """Declare a module whose parameters change without gradients (a teacher, an anchor)."""
        self.add_module(name, module.requires_grad_(False))
        self._mutable_modules.append(f"{name}.")

    def add_optimizer(
        self, config: optim.GradientConfig, params: list[nn.Parameter], name: str = "optimizer"
    ) -> None:
        """Declare an optimiser over ``params``, kept as ``self.<name>``."""
        self._optimizers[name] = {}
        setattr(self, name, optim.build(config, params))

    @property
    def nbytes(self) -> int:
        """Bytes of everything held: weights, teachers, optimisers, banks, the state to reset to."""
        held = [self._initial, *(getattr(self, name) for name in self._states)]
        moments = (dict(getattr(self, name).state) for name in self._optimizers)
        return nbytes([*self.parameters(), *self.buffers(), *held, *moments])

    def _snapshot(self, tensors: bool = True) -> dict[str, Any]:
        """Independent copies of the mutable tensors, states and optimisers."""
        kept = self._mutable_tensors() if tensors else ()
        return {
            "tensors": {k: v.detach().clone() for k, v in kept},
            "states": {name: copy.deepcopy(getattr(self, name)) for name in self._states},
            "optimizers": {
                name: copy.deepcopy(getattr(self, name).state_dict()) for name in self._optimizers
            },
        }

    def _keep_initial(self) -> None:
        """Make the present state the one that ``reset`` goes back to."""
        self._initial = self._snapshot()
        self._share_initial()

    def _share_initial(self) -> None:
        """Keep once what a teacher, an anchor and the state to reset to have in common."""
        mutable = {id(tensor) for _, tensor in self._mutable_tensors()}
        named = (*self.named_parameters(), *self.named_buffers())
        frozen = [(name, tensor) for name, tensor in named if id(tensor) not in mutable]
        self._initial["tensors"] = share(self._initial["tensors"], frozen)

    def _restore(self, snapshot: Mapping[str, Any]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in self._mutable_tensors():
                if name in snapshot["tensors"]:
                    tensor.copy_(snapshot["tensors"][name])
        for name in self._states:
            setattr(self, name, copy.deepcopy(snapshot["states"].get(name, getattr(self, name))))
        for name in self._optimizers:
            # load_state_dict aliases the tensors it is given: without the copy a second reset
            # would restore drifted moments.
            getattr(self, name).load_state_dict(copy.deepcopy(snapshot["optimizers"][name]))

    def _mutable_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Adapted parameters, all buffers, and the tensors of declared modules."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad or name.startswith(tuple(self._mutable_modules)):
                yield name, parameter
        yield from self.named_buffers()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stateful:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._states:
            setattr(self, name, map_tensors(fn, getattr(self, name)))
        # What ``reset`` puts back moves too; optimisers move their part when it is loaded.
        for part in ("tensors", "states"):
            self._initial[part] = map_tensors(fn, self._initial[part])
        self._share_initial()
        for name in self._optimizers:
            for moments in getattr(self, name).state.values():
                for key, value in moments.items():
                    if isinstance(value, Tensor) and key != "step":
                        moments[key] = fn(value)
        return self
