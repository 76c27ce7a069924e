"""The state of an Avalanche strategy between experiences, as plain containers and tensors.

Avalanche's own checkpoints need pickle and fail; this walks over the attributes instead. Each value
becomes a node ``{"is": kind, ...}``: numbers, texts and tensors as they are; containers by their
items; datasets as places in our stream and extra columns; copies of the model by their weights;
objects of Avalanche by their attributes; parameters by name. What none of this describes is
``UnknownState``: the caller then trains the finished experiences again.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from enum import Enum
from logging import Logger
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from continual.avalanche_data import BASE_ATTRIBUTES, SampleImages, origins
from continual.avalanche_state import (
    FACTORIES,
    MAKERS,
    SEQUENCES,
    UnknownState,
    shapes_of,
    tensors_of,
)

# Functions, and what is no state: neither is saved, the fresh strategy's own stay.
_KEPT = (FunctionType, BuiltinFunctionType, MethodType, type, Logger)
_INNER = frozenset(vars(nn.Module()))


class Saver:
    """Saves one strategy.

    Args:
        strategy: A fresh Avalanche strategy.
        images: What the datasets of our experiences read from; its buffers may hold no others.
        ours: Types whose instances save themselves by ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self, strategy: Any, images: Sequence[SampleImages], ours: tuple[type, ...] = ()
    ) -> None:
        self.strategy = strategy
        self._starts = np.cumsum([0, *(len(part) for part in images)])
        self._experience = {id(part): n for n, part in enumerate(images)}
        self.ours = ours
        self._configured = dict(_attributes(self.model, "strategy.model"))
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []

    @property
    def model(self) -> nn.Module:
        """The present model: some strategies put another in its place."""
        model: nn.Module = self.strategy.model
        return model

    def save(self) -> dict[str, Any]:
        """All that later training depends on; not in the middle of ``train`` or ``eval``.

        Raises:
            UnknownState: If the strategy holds what no node describes.
        """
        from avalanche.models import DynamicModule

        if any(isinstance(module, DynamicModule) for module in self.model.modules()):
            raise UnknownState("the model grows with the classes")
        self._numbers, self._alive = {}, []
        self._params = {id(p): name for name, p in self.model.named_parameters()}
        self._modules = {id(m): name for name, m in self.model.named_modules()}
        return {
            "model": self._module(self.model, "strategy.model"),
            "strategy": self._object(self.strategy, "strategy"),
        }

    def _node(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return {"is": "plain", "value": value}
        if isinstance(value, Tensor):
            if id(value) in self._params:
                return {"is": "parameter", "name": self._params[id(value)]}
            # A state may be read onto another device: which tensors stood where is kept apart.
            return {
                "is": "tensor",
                "value": value.detach().clone(),
                "cpu": value.device.type == "cpu",
            }
        if isinstance(value, np.generic):
            return {"is": "array", "value": torch.from_numpy(np.asarray(value)), "item": True}
        if isinstance(value, np.ndarray):
            return {"is": "array", "value": torch.from_numpy(value.copy()), "item": False}
        if isinstance(value, torch.device):
            return {"is": "device", "value": str(value)}
        if isinstance(value, _KEPT):
            made_by = next((n for n, f in MAKERS.items() if f is value), None)
            return {"is": "kept"} if made_by is None else {"is": "maker", "name": made_by}
        if id(value) in self._modules:
            return {"is": "module of the model", "name": self._modules[id(value)]}
        if id(value) in self._numbers:
            return {"is": "seen", "number": self._numbers[id(value)]}
        number = self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)  # an id may be used again once its owner is gone
        return {**self._compound(value, where), "number": number}

    def _compound(self, value: Any, where: str) -> dict[str, Any]:
        from avalanche.benchmarks.utils.data import AvalancheDataset
        from avalanche.training.plugins import EvaluationPlugin

        if isinstance(value, tuple(SEQUENCES.values())):
            return self._sequence(value, where)
        if isinstance(value, dict):
            items = [
                [self._node(k, where), self._node(v, f"{where}[{k!r}]")] for k, v in value.items()
            ]
            return {"is": "dict", "type": _dict_type(value, where), "items": items}
        if isinstance(value, self.ours):
            return {"is": "ours", "state": value.state_dict()}  # type: ignore[attr-defined]
        if isinstance(value, EvaluationPlugin):
            return {"is": "kept"}  # metrics say nothing about the training to come
        if isinstance(value, AvalancheDataset):
            return self._dataset(value, where)
        if isinstance(value, Optimizer):
            return self._optimizer(value, where)
        if isinstance(value, LRScheduler):
            state = {k: self._node(v, f"{where}.{k}") for k, v in value.state_dict().items()}
            return {"is": "scheduler", "state": state}
        if isinstance(value, torch.Generator):
            return {"is": "generator", "state": value.get_state()}
        if isinstance(value, nn.Module):
            same = type(value) is type(self.model) and shapes_of(value) == shapes_of(self.model)
            return {"is": "copy" if same else "module", **self._module(value, where)}
        return self._object(value, where)

    def _module(self, module: nn.Module, where: str) -> dict[str, Any]:
        """Tensors, modes, gradient flags, and what else was set on a module or a part of it."""
        extras = {
            path[len(where) + 1 :]: self._extra(value, path)
            for path, value in _attributes(module, where)
        }
        return {
            "values": {k: v.detach().clone() for k, v in tensors_of(module).items()},
            "training": [part.training for part in module.modules()],
            "gradients": [p.requires_grad for p in module.parameters()],
            "extras": extras,
        }

    def _extra(self, value: Any, where: str) -> Any:
        known, alive = dict(self._numbers), len(self._alive)
        try:
            return self._node(value, where)
        except UnknownState:
            if where in self._configured and self._configured[where] is value:
                self._numbers = known
                del self._alive[alive:]
                return {"is": "kept"}  # there from the start: how the model was built
            raise

    def _sequence(self, value: Any, where: str) -> dict[str, Any]:
        items = list(value)
        if isinstance(value, (set, frozenset)) and list(type(value)(items)) != items:
            raise UnknownState(f"{where} is a set whose order cannot be kept")
        kind = SEQUENCES.get(type(value).__name__)
        if type(value) is not kind:
            raise UnknownState(f"{where} is a {type(value).__name__}")
        nodes = [self._node(v, f"{where}[{n}]") for n, v in enumerate(items)]
        return {"is": kind.__name__, "items": nodes, "limit": getattr(value, "maxlen", None)}

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        from avalanche.benchmarks import CLExperience, CLScenario, CLStream

        kind = type(value)
        foreign = isinstance(value, (CLExperience, CLScenario, CLStream, Dataset, DataLoader, Enum))
        if foreign or not hasattr(value, "__dict__") or hasattr(kind, "__next__"):
            raise UnknownState(f"{where} is a {kind.__name__}")
        number = self._numbers.setdefault(id(value), len(self._numbers))
        return {
            "is": "object",
            "number": number,
            "class": f"{kind.__module__}:{kind.__qualname__}",
            "attributes": {k: self._node(v, f"{where}.{k}") for k, v in vars(value).items()},
        }

    def _dataset(self, dataset: Any, where: str) -> dict[str, Any]:
        leaves, leaf, place = origins(dataset)
        if not all(id(part) in self._experience for part in leaves):
            raise UnknownState(f"{where} holds images that are not of the stream")
        columns = []
        for name, column in dataset._data_attributes.items():
            if name not in BASE_ATTRIBUTES:
                values = [self._node(item, f"{where}.{name}") for item in column]
                columns.append(
                    {
                        "name": name,
                        "values": values,
                        "class": f"{type(column).__module__}:{type(column).__qualname__}",
                        "shown": bool(column.use_in_getitem),
                    }
                )
        experience = np.array([self._experience[id(part)] for part in leaves], dtype=np.int64)
        places = self._starts[experience[leaf]] + place if leaves else place
        plain = type(dataset).__name__ == "AvalancheDataset"
        return {
            "is": "dataset",
            "places": torch.from_numpy(places),
            "columns": columns,
            "plain": plain,
        }

    def _optimizer(self, optimizer: Optimizer, where: str) -> dict[str, Any]:
        groups = []
        for group in optimizer.param_groups:
            if any(id(p) not in self._params for p in group["params"]):
                raise UnknownState(f"{where} holds a parameter that is not the model's")
            options = {k: self._node(v, f"{where}.{k}") for k, v in group.items() if k != "params"}
            names = [self._params[id(p)] for p in group["params"]]
            groups.append({"options": options, "params": names})
        moments = {
            self._params[id(p)]: {k: self._node(v, f"{where}.{k}") for k, v in values.items()}
            for p, values in optimizer.state.items()
            if id(p) in self._params
        }
        return {"is": "optimizer", "groups": groups, "moments": moments}


def _attributes(module: nn.Module, where: str) -> Iterator[tuple[str, Any]]:
    """What was set on a module and its parts beside parameters, buffers and modules."""
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in _INNER:
                yield f"{where}/{name}/{key}", value


def _dict_type(value: Any, where: str) -> str:
    if type(value) is dict:
        return "dict"
    if type(value) is OrderedDict:
        return "ordered"
    if type(value) is defaultdict:
        for name, factory in FACTORIES.items():
            if value.default_factory is factory:
                return name
    raise UnknownState(f"{where} is a {type(value).__name__}")
