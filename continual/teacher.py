"""A frozen copy of the learner: what it knew at the end of an experience."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from continual.plugin import Host


class Teacher:
    """At most one copy of the learner, in eval mode and without gradients."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._saved: dict[str, Any] | None = None

    def __bool__(self) -> bool:
        return self._model is not None or self._saved is not None

    def take(self, host: Host) -> None:
        """Copy the learner as it is now."""
        self._model, self._saved = None, None
        model = deepcopy(host.model).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None
        self._model = model

    def model(self, host: Host) -> nn.Module:
        """The copy; there must be one."""
        if self._model is None:
            saved = self._saved
            assert saved is not None
            self.take(host)
            assert self._model is not None
            self._model.load_state_dict(saved)
        return self._model

    def logits(self, host: Host, x: Tensor) -> Tensor:
        """Its answer ``(B, K)`` to images ``(B, C, H, W)``."""
        host.count(forwards=len(x))
        with torch.no_grad():
            answer: Tensor = self.model(host)(x)
        return answer

    def state_dict(self) -> dict[str, Any] | None:
        """Its weights and statistics; ``None`` where there is no copy."""
        return self._saved if self._model is None else self._model.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take up a state; the copy is made when it is needed."""
        self._model, self._saved = None, None if state is None else dict(state)


class Classes:
    """Which classes were met: in finished experiences, and in the present one."""

    def __init__(self) -> None:
        self._old: set[int] = set()
        self._present: set[int] = set()

    def begin(self, host: Host) -> None:
        """Call in ``begin_experience``: its labels are those of the data."""
        self._present = set(host.data.labels.tolist())

    def end(self) -> None:
        """Call in ``end_experience``."""
        self._old |= self._present
        self._present = set()

    def old(self, device: str | torch.device) -> Tensor:
        """Classes ``(C,)`` of finished experiences that the present one does not bring."""
        return torch.tensor(sorted(self._old - self._present), dtype=torch.int64, device=device)

    def seen(self, device: str | torch.device) -> Tensor:
        """All classes ``(C,)`` met so far, those of the present experience included."""
        return torch.tensor(sorted(self._old | self._present), dtype=torch.int64, device=device)

    def state_dict(self) -> dict[str, Any]:
        """Both sets."""
        return {"old": sorted(self._old), "present": sorted(self._present)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up both sets."""
        self._old, self._present = set(state["old"]), set(state["present"])
