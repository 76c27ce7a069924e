"""The base of every method: one guarded step around what the method writes.

A subclass writes ``setup`` (what is adapted) and ``adapt`` (one batch). Reset, save, load, device
moves, the NaN guard and the report are inherited.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tta import budget, fitting, inputs, norm_layers, optim, window
from tta.config import AdapterConfig
from tta.errors import AdapterError
from tta.memory import Fifo
from tta.stateful import Stateful

if TYPE_CHECKING:
    from tta.guard import Guard

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a method asks of its surroundings, as data.

    Attributes:
        source_data: ``fit_source`` must be called before the first batch.
        source_labels: The batches of ``fit_source`` must be pairs ``(x, y)``.
        gradients: The method back-propagates.
        norms: Kinds of normalisation layers of which at least one must be there; empty: any model.
    """

    source_data: bool = False
    source_labels: bool = False
    gradients: bool = True
    norms: frozenset[str] = frozenset()


class Adapter(Stateful):
    """A model that adapts to what it sees: ``logits = adapter(x)``.

    Args:
        model: Any module that maps images ``(B, C, H, W)`` to scores ``(B, K, ...)``. It is used as
            it is (``tta.wrap`` copies); its layers are put in eval mode and frozen, then ``setup``
            enables what the method adapts.
        config: The method's ``Config``; its defaults when ``None``.
        window: Smaller batches go into a sliding window of so many images (see ``tta.window``); 1:
            each batch as it comes.

    Raises:
        AdapterError: If the model cannot be adapted by this method.
    """

    needs: ClassVar[Needs] = Needs()
    predicts: ClassVar[Literal["before", "after"]] = "before"
    # A mean over augmented views is less sure than any one model: a guard asks ``predict`` instead.
    answers_with_views: ClassVar[bool] = False
    Config: ClassVar[type[AdapterConfig]] = AdapterConfig
    # Options under which an untrained model takes every branch; the conformance suite runs each.
    check_options: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    config: AdapterConfig
    num_steps: int
    source_fitted: bool
    ring: dict[str, Any]
    guard_state: dict[str, Any]
    budget_state: dict[str, Any]
    guard_phase: str | None = None  # words on the last call, of the guard and of the budget
    guard_event: str | None = None
    degraded: str | None = None
    _guard: Guard | None = None
    _budget: budget.BudgetConfig | None = None
    _check_input = staticmethod(inputs.check)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name") or cls.__module__.rpartition(".")[2].replace("_", "-")
        made = cls.Config
        if not (is_dataclass(made) and issubclass(made, AdapterConfig)):
            raise TypeError(
                f"{cls.__name__}.Config must be a dataclass derived from tta.AdapterConfig"
            )
        if not made.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise TypeError(f"{cls.__name__}.Config must be frozen")

    def __init__(
        self, model: nn.Module, config: AdapterConfig | None = None, *, window: int = 1
    ) -> None:
        super().__init__()
        config = self.Config() if config is None else config
        if not isinstance(config, self.Config):
            raise AdapterError(
                f"{self.name} takes a {self.Config.__qualname__}, got {type(config).__qualname__}"
            )
        if not isinstance(model, nn.Module):
            raise AdapterError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, Adapter):
            raise AdapterError(f"the model is already wrapped by {model.name!r}; wrap the original")
        if window < 1 or (window > 1 and config.episodic):
            raise AdapterError(f"window={window}: it must be 1 (none), or more and episodic=False")
        self.config = config
        self.model = model
        self._report: dict[str, Any] = {}
        self._fitted: dict[str, Any] = {}
        model.eval().requires_grad_(False)
        self.add_state("num_steps", 0)
        self.add_state("source_fitted", False)
        self._window = window
        if window > 1:
            self.add_state("ring", Fifo.empty())
        self.setup()
        self._own_statistics = norm_layers.find(self)
        self._keep_initial()

    # What a method writes -------------------------------------------------------------------

    def setup(self) -> None:
        """Choose what is adapted; declare state, optimisers and extra modules."""

    def adapt(self, x: Tensor) -> Tensor:
        """Adapt to one batch of finite images and return its logits.

        Args:
            x: ``(B, C, H, W)``, floating, in ``[0, 1]``.

        Returns:
            Logits ``(B, K)``; from before or after the update as ``predicts`` says.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define adapt")

    def infer(self, x: Tensor) -> Tensor:
        """Logits without adaptation, asked without gradients; override it for a teacher's."""
        logits: Tensor = self.model(x)
        return logits

    def fit(self, batches: Iterable[Any]) -> None:
        """Compute what the method takes from source images; called by ``fit_source``.

        Args:
            batches: Images ``(B, C, H, W)``; pairs ``(images, labels (B,) int64)`` where
                ``needs.source_labels`` says so. Each batch comes once, in order.
        """

    # What a caller uses ---------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Adapt to ``x`` and predict it; works inside ``no_grad`` and ``inference_mode``.

        Rows with NaN, infinity or values beyond 1e9 do not adapt anything and get NaN logits.

        Args:
            x: Images ``(B, C, H, W)``, floating, in ``[0, 1]``.

        Returns:
            Detached logits ``(B, K)``.

        Raises:
            AdapterError: For a wrong rank or dtype, an empty batch, or missing source statistics.
        """
        self._check_input(x)
        if self.needs.source_data and not self.source_fitted:
            raise AdapterError(f"{self.name} needs source data: call fit_source(batches) first")
        if self.config.episodic:
            self.reset()
        step = partial(budget.step, self) if self._budget else self._ordinary_call
        return step(x) if self._guard is None else self._guard.step(self, x, step)

    def _ordinary_call(self, x: Tensor) -> Tensor:
        self._report = {"forwards": 0, "backwards": 0, "skipped_non_finite": 0, "update_refused": 0}
        with torch.inference_mode(False), torch.enable_grad():
            # A tensor made in inference mode cannot be saved for backward; its clone can.
            x = x.clone() if x.is_inference() else x
            step = self._adapt_once if self._window == 1 else partial(window.step, self)
            logits, skipped = self._on_finite_rows(step, x)
        self._report["skipped_non_finite"] = skipped
        self.num_steps += 1
        return logits

    def predict(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` of the current model for ``x`` ``(B, C, H, W)``; changes nothing."""
        self._check_input(x)
        with torch.inference_mode(False), torch.no_grad():
            return self._on_finite_rows(self.infer, x)[0]

    def reset(self) -> None:
        """Go back to the state right after construction (or after ``fit_source``)."""
        self._restore(self._initial)

    def fit_source(self, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> None:
        """Let the method take what it needs from source images; ``reset`` keeps it.

        Args:
            batches: Source images ``(B, C, H, W)`` in ``[0, 1]``, or pairs of them with their
                labels ``(B,)``. Labels reach the method only where ``needs.source_labels`` says
                so.

        Raises:
            AdapterError: Without a batch, or without labels where the method needs them.
        """
        before = self._snapshot()["tensors"]
        given = fitting.checked(batches, self.name, self.needs.source_labels, self._check_input)
        with torch.inference_mode(False), torch.enable_grad():
            self.fit(given)
        self.source_fitted = True
        self._keep_initial()
        now = self._initial["tensors"]
        changed = {k: v for k, v in now.items() if k not in before or not v.equal(before[k])}
        self._fitted = {**self._initial, "tensors": changed}

    def source_state(self) -> dict[str, Any]:
        """What ``fit_source`` left behind, for ``load_source_state`` of an adapter made alike.

        Raises:
            AdapterError: Before ``fit_source``.
        """
        if not self._fitted:
            raise AdapterError(f"{self.name} has no source state: call fit_source(batches) first")
        return copy.deepcopy(self._fitted)

    def load_source_state(self, state: Mapping[str, Any]) -> None:
        """Take the place of ``fit_source`` on a fresh adapter of the same model and config."""
        self._fitted = copy.deepcopy(dict(state))
        self._restore(self._fitted)
        self._keep_initial()

    @property
    def report(self) -> dict[str, float]:
        """Scalars of the last call: loss, entropy, selected fraction, images forward and back."""
        return {
            key: float(value) if isinstance(value, Tensor) else value
            for key, value in self._report.items()
        }

    # Building blocks for methods ------------------------------------------------------------

    def logits(self, x: Tensor) -> Tensor:
        """One forward of the adapted model, counted in the report (images)."""
        self.count_forwards(len(x))
        out: Tensor = self.model(x)
        return out

    def count_forwards(self, images: int) -> None:
        """Add forwards that ``logits`` did not make (a teacher's, an anchor's) to the report."""
        self._report["forwards"] = self._report.get("forwards", 0) + images

    def update(self, loss: Tensor | Iterable[Tensor], images: int, name: str = "optimizer") -> None:
        """One step on ``loss`` over ``images`` images; refused where a gradient is not finite.

        Terms that are made on demand are back-propagated one by one: no two graphs live at once.
        """
        self._report["backwards"] += images
        if not optim.step_if_finite(getattr(self, name), loss):
            self._report["update_refused"] += 1

    def record(self, **values: Any) -> None:
        """Put scalars (numbers or detached tensors) into the report of this step."""
        self._report.update(
            (key, value.detach() if isinstance(value, Tensor) else value)
            for key, value in values.items()
        )

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on (seed, step, purpose) alone."""
        key = f"{self.config.seed}/{self.num_steps}/{purpose}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
        return torch.Generator().manual_seed(seed)

    # Inherited machinery --------------------------------------------------------------------

    def train(self, mode: bool = True) -> Adapter:
        """Set the flag of the adapter alone: the modes of its layers are part of the method."""
        self.training = mode
        return self

    def extra_repr(self) -> str:
        """The resolved config."""
        return f"{self.name}, {self.config}"

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Everything mutable, detached from the live tensors; loadable with ``weights_only``."""
        state = super().state_dict(*args, **kwargs)
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}

    def get_extra_state(self) -> dict[str, Any]:
        """What is not a parameter or buffer: states, optimisers, and the state to reset to."""
        now, initial = self._snapshot(tensors=False), copy.deepcopy(self._initial)
        return {**self._identity(), "now": now, "initial": initial}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of ``get_extra_state``.

        Raises:
            AdapterError: If the state is of another method, config or version.
        """
        for key, value in self._identity().items():
            if state.get(key, value) != value:
                raise AdapterError(
                    f"this state was saved with {key}={state[key]!r}, the adapter has {value!r}; "
                    "build the adapter with the same method and config"
                )
        self._initial = copy.deepcopy(state["initial"])
        self._share_initial()
        self._restore(state["now"])

    def _identity(self) -> dict[str, Any]:
        """What a saved state and the adapter that loads it must have in common."""
        return {
            "version": STATE_VERSION,
            "adapter": self.name,
            "config": self.config.to_dict(),
            "window": self._window,
            "guard": self._guard and self._guard.config.to_dict(),
            "budget": self._budget and self._budget.to_dict(),
            "norm": norm_layers.describe(self.model),
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        super()._apply(fn, recurse)
        if self._guard is not None:
            self._guard.move(fn)
        return self

    def _adapt_once(self, x: Tensor) -> Tensor:
        """``adapt``; the statistics of replaced layers move here and nowhere else."""
        with norm_layers.moving(self._own_statistics):
            return self.adapt(x)

    def _on_finite_rows(self, step: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
        return inputs.on_finite_rows(step, self.infer, x)
