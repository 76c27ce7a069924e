"""Memory banks: which images of a stream are kept, in buffers that are allocated once.

A bank is a thin view on a plain dict, so that an adapter can declare, save and reset it:

    self.add_state("memory", Fifo.empty())          # in setup
    Fifo(self.memory, capacity=64).add(images)      # in adapt

The decisions are made on the host from plain numbers (hand a whole batch over at once: one
transfer); the images are written with one copy a call and never leave their device. An insertion
costs the same after a million images as after a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta.errors import AdapterError


class Bank:
    """The buffer that all banks share.

    Args:
        state: A dict made by ``empty``; changed in place.
        capacity: The largest number of images that are held.
    """

    def __init__(self, state: dict[str, Any], capacity: int) -> None:
        self.state = state
        self.capacity = capacity

    @classmethod
    def empty(cls) -> dict[str, Any]:
        """The state of a bank that has seen nothing: plain containers, numbers and tensors."""
        return {"images": None, "held": 0}

    def __len__(self) -> int:
        held: int = self.state["held"]
        return held

    def images(self) -> Tensor:
        """The images held, ``(len(self), ...)``, by slot; a view of the buffer."""
        buffer: Tensor = self.state["images"]
        return buffer[: len(self)]

    def _prepare(self, images: Tensor) -> None:
        """Allocate the buffer; images of another kind start anew, no batch could hold both."""
        buffer = self.state["images"]
        if buffer is None or buffer.shape[1:] != images.shape[1:] or buffer.dtype != images.dtype:
            self.state.update(self.empty())
            self.state["images"] = images.new_zeros(self.capacity, *images.shape[1:])

    def _write(self, images: Tensor, slots: Sequence[int | None]) -> None:
        """Row ``i`` of ``images`` into ``slots[i]``; a later row wins, ``None`` drops its row."""
        rows = {slot: row for row, slot in enumerate(slots) if slot is not None}
        if not rows:
            return
        with torch.no_grad():
            source = torch.tensor(list(rows.values()), device=images.device)
            target = torch.tensor(list(rows), device=images.device)
            self.state["images"].index_copy_(0, target, images.index_select(0, source))


class Fifo(Bank):
    """The last ``capacity`` images."""

    @classmethod
    def empty(cls) -> dict[str, Any]:
        """Buffer, images held, and the slot that is written next."""
        return {"images": None, "held": 0, "next": 0}

    @property
    def next(self) -> int:
        """The slot that is written next."""
        slot: int = self.state["next"]
        return slot

    def add(self, images: Tensor) -> list[int]:
        """Keep images ``(B, ...)`` with ``B <= capacity``.

        Returns:
            The slots they went to: their rows in ``images()``.
        """
        self._prepare(images)
        state = self.state
        slots = [(state["next"] + i) % self.capacity for i in range(len(images))]
        self._write(images, slots)
        state["next"] = (state["next"] + len(images)) % self.capacity
        state["held"] = min(self.capacity, state["held"] + len(images))
        return slots


class Reservoir(Bank):
    """A uniform sample of all images seen (Vitter's algorithm R)."""

    @classmethod
    def empty(cls) -> dict[str, Any]:
        """Buffer, images held, images seen."""
        return {"images": None, "held": 0, "seen": 0}

    def add(self, images: Tensor, draws: Tensor) -> None:
        """Offer images ``(B, ...)``; each of all seen so far is kept with the same probability.

        Args:
            images: Any images.
            draws: Uniform numbers ``(B,)`` in ``[0, 1)``, one an image.
        """
        self._prepare(images)
        state = self.state
        slots: list[int | None] = []
        for draw in draws.tolist():
            state["seen"] += 1
            if state["held"] < self.capacity:
                slots.append(state["held"])
                state["held"] += 1
            else:
                slot = _pick(draw, state["seen"])
                slots.append(slot if slot < self.capacity else None)
        self._write(images, slots)


class ClassBalanced(Bank):
    """NOTE's prediction-balanced reservoir: even classes, and uniform over time in each.

    ``members`` maps a class to its slots, ``seen`` to the number of its arrivals.
    """

    @classmethod
    def empty(cls) -> dict[str, Any]:
        """Buffer, images held, slots by class, arrivals by class."""
        return {"images": None, "held": 0, "members": {}, "seen": {}}

    def add(self, images: Tensor, labels: Sequence[int], draws: Tensor) -> None:
        """Offer images with predicted labels.

        A full bank gives up an item of one of its largest classes; where the image's own class is
        among them, an item of that class, with the reservoir's probability.

        Args:
            images: ``(B, ...)``.
            labels: Predicted classes, plain numbers.
            draws: Uniform numbers ``(B, 3)`` in ``[0, 1)``: which of the largest classes, which of
                its items, whether an image of a largest class is taken.
        """
        self._prepare(images)
        state = self.state
        slots: list[int | None] = []
        for label, (which, item, taken) in zip(labels, draws.tolist(), strict=True):
            state["seen"][label] = state["seen"].get(label, 0) + 1
            if state["held"] < self.capacity:
                slot: int | None = state["held"]
                state["held"] += 1
            else:
                slot = self._free(label, which, item, taken)
            if slot is not None:
                state["members"].setdefault(label, []).append(slot)
            slots.append(slot)
        self._write(images, slots)

    def _free(self, label: int, which: float, item: float, taken: float) -> int | None:
        members = self.state["members"]
        size = max(map(len, members.values()))
        largest = [key for key in sorted(members) if len(members[key]) == size]
        if label in largest:
            if taken > size / self.state["seen"][label]:
                return None
            victim = label
        else:
            victim = largest[_pick(which, len(largest))]
        slot: int = members[victim].pop(_pick(item, size))
        return slot


class Timeliness(Bank):
    """RoTTA's memory: category-balanced, with timeliness and uncertainty (CSTU).

    ``members`` maps a class to its slots in order of insertion. An item's age is the number of
    images seen since it came, itself counted: ``clock - born``.

    Args:
        state: A dict made by ``empty``; changed in place.
        capacity: The largest number of images that are held.
        classes: Number of classes ``K``; each has room for ``capacity / K`` images.
        age_weight: ``lambda_t``, weight of the age.
        uncertainty_weight: ``lambda_u``, weight of the uncertainty.
    """

    def __init__(
        self,
        state: dict[str, Any],
        capacity: int,
        classes: int,
        age_weight: float = 1.0,
        uncertainty_weight: float = 1.0,
    ) -> None:
        super().__init__(state, capacity)
        self.quota = capacity / classes
        self.log_classes = math.log(classes) if classes > 1 else 1.0
        self.age_weight = age_weight
        self.uncertainty_weight = uncertainty_weight

    @classmethod
    def empty(cls) -> dict[str, Any]:
        """Buffer, slots by class, the clock, and by slot when the image came and its entropy."""
        return {
            "images": None,
            "held": 0,
            "members": {},
            "clock": 0,
            "born": [],
            "uncertainties": [],
        }

    def add(self, images: Tensor, labels: Sequence[int], uncertainties: Sequence[float]) -> None:
        """Offer images one after the other.

        Args:
            images: ``(B, ...)``.
            labels: Predicted classes, plain numbers.
            uncertainties: Entropies of the predictions in nats, plain numbers.
        """
        self._prepare(images)
        state = self.state
        slots: list[int | None] = []
        for label, uncertainty in zip(labels, uncertainties, strict=True):
            slot = self._place(label, uncertainty)
            if slot is not None:
                state["members"].setdefault(label, []).append(slot)
                state["born"][slot] = state["clock"]
                state["uncertainties"][slot] = uncertainty
            slots.append(slot)
            state["clock"] += 1
        self._write(images, slots)

    def batch(self) -> tuple[Tensor, list[int]]:
        """Images ``(n, ...)`` class by class, each class in order of insertion, and their ages."""
        state = self.state
        order = self._slots(sorted(state["members"]))
        index = torch.tensor(order, device=state["images"].device)
        ages = [state["clock"] - state["born"][slot] for slot in order]
        return state["images"].index_select(0, index), ages

    def _place(self, label: int, uncertainty: float) -> int | None:
        """The slot for a new image; ``None`` where no item is worse than it."""
        state, members = self.state, self.state["members"]
        if len(members.get(label, ())) >= self.quota:
            candidates = members[label]
        elif state["held"] < self.capacity:
            state["held"] += 1
            state["born"].append(0)
            state["uncertainties"].append(0.0)
            return len(state["born"]) - 1
        else:
            size = max(map(len, members.values()))
            candidates = self._slots(k for k in sorted(members) if len(members[k]) == size)
        born = np.array([state["born"][slot] for slot in candidates])
        entropies = np.array([state["uncertainties"][slot] for slot in candidates])
        scores = self._scores(state["clock"] - born, entropies)
        worst = len(scores) - 1 - int(scores[::-1].argmax())  # the last of equals
        if scores[worst] <= self._scores(np.zeros(1), np.array([uncertainty]))[0]:
            return None
        slot: int = candidates[worst]
        next(held for held in members.values() if slot in held).remove(slot)
        return slot

    def _scores(self, ages: Any, uncertainties: Any) -> Any:
        timeliness = self.age_weight / (1 + np.exp(-ages / self.capacity))
        return timeliness + self.uncertainty_weight * uncertainties / self.log_classes

    def _slots(self, classes: Any) -> list[int]:
        return [slot for key in classes for slot in self.state["members"][key]]


def judge(logits: Tensor) -> tuple[list[int], list[float]]:
    """Predicted classes and entropies in nats of logits ``(B, K)``, in one transfer to the host.

    Raises:
        AdapterError: If the logits are not one vector an image.
    """
    if logits.ndim != 2:
        raise AdapterError(
            f"a memory of images needs one answer an image, (B, K), got {tuple(logits.shape)}"
        )
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    p = wide.softmax(1)
    uncertainties = -(p * (p + 1e-6).log()).sum(1)  # the reference's epsilon
    rows = torch.stack([p.argmax(1).to(p), uncertainties]).tolist()
    return [int(label) for label in rows[0]], rows[1]


def _pick(draw: float, count: int) -> int:
    """A number in ``0 .. count - 1`` from a uniform draw."""
    return min(int(draw * count), count - 1)
