"""Buffers of rows: a bounded number of samples out of all that came, at a constant cost a row.

Which rows stay is decided by a policy on plain numbers; ``continual.rows`` holds their tensors.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from continual.rows import Rows
from tta.errors import AdapterError

Mask = Tensor | Callable[[Mapping[str, Tensor]], Tensor]


class Buffer(Protocol):
    """What ``Reservoir`` and ``ClassBalanced`` have in common."""

    @property
    def columns(self) -> dict[str, Tensor]:
        """The rows held, by column; images as they are stored."""

    def __len__(self) -> int:
        """Rows held."""

    def add(self, generator: torch.Generator, **columns: Tensor) -> None:
        """Offer rows; each column is ``(R, ...)``, with as many rows in all."""

    def draw(
        self, count: int, generator: torch.Generator, where: Mask | None = None
    ) -> dict[str, Tensor]:
        """Rows drawn without replacement, ``count`` of them or as many as there are."""

    def drop(self, rows: Mask) -> int:
        """Take out rows for good; says how many."""

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers, numbers and tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""


class Reservoir:
    """A uniform sample of all rows that came (Vitter's algorithm R).

    After rows were dropped, a place that became free is refilled at the rate at which rows are
    kept, so the sample stays uniform over what was not dropped (random pairing: Gemulla, Lehner
    and Haas, 2008); of the rows that are not held as many are taken to be gone in proportion.

    Args:
        size: Rows held at most.
    """

    def __init__(self, size: int) -> None:
        self.rows = Rows(size)
        self.seen = 0
        self._free = self._owed = 0

    @property
    def columns(self) -> dict[str, Tensor]:
        """The rows held, by column; images as they are stored."""
        return self.rows.columns

    def __len__(self) -> int:
        """Rows held."""
        return self.rows.held

    def add(self, generator: torch.Generator, **columns: Tensor) -> None:
        """Offer rows; each column is ``(R, ...)``."""
        draws = torch.rand(_count(columns), generator=generator, dtype=torch.float64)
        self.rows.write([self._slot(draw) for draw in draws.tolist()], columns)

    def draw(
        self, count: int, generator: torch.Generator, where: Mask | None = None
    ) -> dict[str, Tensor]:
        """Rows drawn without replacement; fewer than ``count`` where there are fewer."""
        return _draw(self.rows, count, generator, where)

    def drop(self, rows: Mask) -> int:
        """Take out rows by a mask ``(len(self),)``, or by a function of the columns to one."""
        mask, held = _mask(rows, self.columns), len(self)
        gone = int(mask.sum())
        if gone:
            lost = round(self.seen * gone / held)
            self.seen -= lost
            self._free += gone
            self._owed += lost
            self.rows.keep(~mask)
        return gone

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers, numbers and tensors."""
        return {
            "rows": self.rows.state_dict(),
            "seen": self.seen,
            "free": self._free,
            "owed": self._owed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.rows.load_state_dict(state["rows"])
        self.seen, self._free, self._owed = state["seen"], state["free"], state["owed"]

    def _slot(self, draw: float) -> int | None:
        self.seen += 1
        if self._owed:
            inside = draw * self._owed < self._free
            self._owed -= 1
            self._free -= inside
            return self._append() if inside else None
        if self.rows.held < self.rows.size:
            return self._append()
        place = int(draw * self.seen)
        return place if place < self.rows.size else None

    def _append(self) -> int:
        self.rows.held += 1
        return self.rows.held - 1


class ClassBalanced:
    """As many rows of each class as can be; needs the column ``y``.

    ``within="reservoir"`` is class-balancing reservoir sampling (Chrysakis and Moens, Online
    Continual Learning from Imbalanced Data, ICML 2020): a full buffer gives up a row of its
    largest class for one of a class that never was the largest; the rows of a class that was are
    a uniform sample of it. ``within="first"`` is GDumb's greedy sampler (Prabhu, Torr and Dokania,
    2020): a class takes rows until it has its equal share, and keeps the first that came.

    Args:
        size: Rows held at most.
        within: Which rows of a class stay.
    """

    def __init__(self, size: int, within: Literal["reservoir", "first"] = "reservoir") -> None:
        self.rows = Rows(size)
        self.within = within
        self._slots: dict[int, list[int]] = {}
        self._came: Counter[int] = Counter()
        self._full: set[int] = set()
        # Sizes of classes, the largest on top; entries that are no longer true are passed over.
        self._heap: list[tuple[int, int]] = []

    @property
    def columns(self) -> dict[str, Tensor]:
        """The rows held, by column; images as they are stored."""
        return self.rows.columns

    def __len__(self) -> int:
        """Rows held."""
        return self.rows.held

    def add(self, generator: torch.Generator, **columns: Tensor) -> None:
        """Offer rows; each column is ``(R, ...)``."""
        draws = torch.rand(_count(columns), 2, generator=generator, dtype=torch.float64)
        choose = self._first if self.within == "first" else self._balanced
        labels = columns["y"].tolist()
        slots = [choose(*row) for row in zip(labels, *draws.T.tolist(), strict=True)]
        self.rows.write(slots, columns)

    def draw(
        self, count: int, generator: torch.Generator, where: Mask | None = None
    ) -> dict[str, Tensor]:
        """Rows drawn without replacement; fewer than ``count`` where there are fewer."""
        return _draw(self.rows, count, generator, where)

    def drop(self, rows: Mask) -> int:
        """Take out rows by a mask ``(len(self),)``, or by a function of the columns to one."""
        mask = _mask(rows, self.columns)
        gone = int(mask.sum())
        if gone:
            self.rows.keep(~mask)
            before = {label: len(slots) for label, slots in self._slots.items()}
            self._index()
            for label, size in before.items():
                kept = len(self._slots.get(label, ()))
                self._came[label] = round(self._came[label] * kept / max(1, size))
            self._full = set()
        return gone

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers, numbers and tensors."""
        return {
            "rows": self.rows.state_dict(),
            "slots": {label: list(slots) for label, slots in self._slots.items()},
            "came": dict(self._came),
            "full": sorted(self._full),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self.rows.load_state_dict(state["rows"])
        self._slots = {int(label): list(slots) for label, slots in state["slots"].items()}
        self._came = Counter({int(label): n for label, n in state["came"].items()})
        self._full = set(state["full"])
        self._sort()

    def _balanced(self, label: int, first: float, second: float) -> int | None:
        self._came[label] += 1
        if self.rows.held < self.rows.size:
            return self._append(label)
        # A class that is as large as the largest counts as one that was.
        most = len(self._slots[self._largest()])
        if label not in self._full and len(self._slots.get(label, ())) < most:
            return self._replace(label, first)
        own = self._slots[label]
        if first * self._came[label] < len(own):
            return own[int(second * len(own))]
        return None

    def _first(self, label: int, first: float, second: float) -> int | None:
        # The share before this row: a new class always gets in, then evens out.
        known = len(self._slots)
        own = len(self._slots.get(label, ()))
        if own and own * known >= self.rows.size:
            return None
        if self.rows.held < self.rows.size:
            return self._append(label)
        return self._replace(label, first)

    def _append(self, label: int) -> int:
        self.rows.held += 1
        self._slots.setdefault(label, []).append(self.rows.held - 1)
        self._resized(label)
        return self.rows.held - 1

    def _replace(self, label: int, draw: float) -> int:
        """The slot of a row of the largest class, which goes over to ``label``."""
        largest = self._largest()
        slots = self._slots[largest]
        place = int(draw * len(slots))
        slot, slots[place] = slots[place], slots[-1]
        slots.pop()
        self._full.add(largest)
        self._slots.setdefault(label, []).append(slot)
        self._resized(largest)
        self._resized(label)
        return slot

    def _largest(self) -> int:
        """The class with the most rows; the lowest label of several."""
        while True:
            size, label = self._heap[0]
            if -size == len(self._slots[label]):
                return label
            heapq.heappop(self._heap)

    def _resized(self, label: int) -> None:
        heapq.heappush(self._heap, (-len(self._slots[label]), label))
        if len(self._heap) > 4 * len(self._slots) + 64:
            self._sort()

    def _index(self) -> None:
        self._slots = {}
        for slot, label in enumerate(self.columns["y"].tolist()):
            self._slots.setdefault(label, []).append(slot)
        self._sort()

    def _sort(self) -> None:
        self._heap = [(-len(slots), label) for label, slots in self._slots.items()]
        heapq.heapify(self._heap)


def _count(columns: Mapping[str, Tensor]) -> int:
    sizes = {len(values) for values in columns.values()}
    if len(sizes) != 1:
        raise AdapterError(
            f"the columns of a row belong together, got {sizes or 'no'} rows: "
            f"{ {name: len(values) for name, values in columns.items()} }"
        )
    return sizes.pop()


def _draw(
    rows: Rows, count: int, generator: torch.Generator, where: Mask | None
) -> dict[str, Tensor]:
    if where is None:
        return rows.read(torch.randperm(rows.held, generator=generator)[:count])
    among = _mask(where, rows.columns).nonzero()[:, 0]
    return rows.read(among[torch.randperm(len(among), generator=generator)[:count]])


def _mask(rows: Mask, columns: Mapping[str, Tensor]) -> Tensor:
    if callable(rows) and not isinstance(rows, Tensor):
        if not columns:
            return torch.zeros(0, dtype=torch.bool)
        rows = rows(columns)
    return rows.cpu().bool()
