"""Buffers of rows: a bounded number of samples out of all that came, at a constant cost a row.

A row has named columns (image, label, logits, ...). Which rows stay is decided by a policy on
plain numbers; the tensors are allocated once and written with one copy a call.

The column ``x`` holds images in [0, 1]. They are kept as bytes where that loses nothing, which is
so for all images that were read from bytes and not augmented.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from streams.types import to_unit
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


class Rows:
    """Storage of at most ``size`` rows.

    Attributes:
        held: Rows held; slots ``0 .. held - 1``.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise AdapterError(f"a buffer of size {size} holds nothing: give it 1 or more")
        self.size = size
        self.held = 0
        self._columns: dict[str, Tensor] = {}

    @property
    def columns(self) -> dict[str, Tensor]:
        """Views ``(held, ...)`` of the columns."""
        return {name: column[: self.held] for name, column in self._columns.items()}

    def write(self, slots: Sequence[int | None], columns: Mapping[str, Tensor]) -> None:
        """Row ``i`` goes to ``slots[i]``; a later row wins, ``None`` drops its row."""
        rows = {slot: row for row, slot in enumerate(slots) if slot is not None}
        self._prepare(columns)
        if not rows:
            return
        for name, values in columns.items():
            column = self._columns[name]
            source = torch.tensor(list(rows.values()), device=values.device)
            target = torch.tensor(list(rows), device=column.device)
            chosen = values.detach().index_select(0, source).to(column.device)
            if name == "x":
                chosen = pack(chosen)
                if column.dtype == torch.uint8 and chosen.dtype != torch.uint8:
                    # The first image that is not made of bytes: the others give up theirs.
                    column = self._columns[name] = to_unit(column, chosen.dtype)
                chosen = unpack(chosen, column.dtype)
            column.index_copy_(0, target, chosen.to(column.dtype))

    def read(self, at: Tensor) -> dict[str, Tensor]:
        """The rows in slots ``at``, copied; images as they are stored."""
        return {
            name: column.index_select(0, at.to(column.device))
            for name, column in self._columns.items()
        }

    def keep(self, kept: Tensor) -> None:
        """Move the rows that a mask ``(held,)`` keeps to the front, in their order."""
        at = kept.cpu().nonzero()[:, 0]
        for name, values in self.read(at).items():
            self._columns[name][: len(at)] = values
        self.held = len(at)

    def state_dict(self) -> dict[str, Any]:
        """The rows held."""
        return {name: column.clone() for name, column in self.columns.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up rows."""
        self._columns, self.held = {}, 0
        for name, values in state.items():
            if len(values) > self.size:
                raise AdapterError(f"{len(values)} rows do not fit a buffer of size {self.size}")
            column = values.new_zeros(self.size, *values.shape[1:])
            column[: len(values)] = values
            self._columns[name], self.held = column, len(values)

    def _prepare(self, columns: Mapping[str, Tensor]) -> None:
        if not self._columns:
            for name, values in columns.items():
                values = pack(values) if name == "x" else values
                self._columns[name] = values.detach().new_zeros(self.size, *values.shape[1:])
        for name, values in columns.items():
            column = self._columns.get(name)
            if column is None or len(columns) != len(self._columns):
                raise AdapterError(
                    f"the buffer has the columns {sorted(self._columns)}, got {sorted(columns)}"
                )
            if column.shape[1:] != values.shape[1:]:
                raise AdapterError(
                    f"the buffer's {name!r} is of shape {tuple(column.shape[1:])}, a row of "
                    f"{tuple(values.shape[1:])} came: one buffer holds one kind"
                )
            if column.device != values.device:  # after a state was loaded on the CPU
                self._columns[name] = column.to(values.device)


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
                self._came[label] = round(self._came[label] * kept / size)
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

    def _balanced(self, label: int, first: float, second: float) -> int | None:
        self._came[label] += 1
        if self.rows.held < self.rows.size:
            return self._append(label)
        most = max(map(len, self._slots.values()))
        self._full |= {c for c, slots in self._slots.items() if len(slots) == most}
        if label not in self._full:
            return self._replace(label, first)
        own = self._slots[label]
        if first * self._came[label] < len(own):
            return own[int(second * len(own))]
        return None

    def _first(self, label: int, first: float, second: float) -> int | None:
        # The share before this row: a new class always gets in, then evens out.
        known = sum(map(bool, self._slots.values()))
        own = len(self._slots.get(label, ()))
        if own and own * known >= self.rows.size:
            return None
        if self.rows.held < self.rows.size:
            return self._append(label)
        return self._replace(label, first)

    def _append(self, label: int) -> int:
        self.rows.held += 1
        self._slots.setdefault(label, []).append(self.rows.held - 1)
        return self.rows.held - 1

    def _replace(self, label: int, draw: float) -> int:
        """The slot of a row of the largest class, which goes over to ``label``."""
        largest = max(self._slots, key=lambda c: (len(self._slots[c]), -c))
        slots = self._slots[largest]
        place = int(draw * len(slots))
        slot, slots[place] = slots[place], slots[-1]
        slots.pop()
        self._slots.setdefault(label, []).append(slot)
        return slot

    def _index(self) -> None:
        self._slots = {}
        for slot, label in enumerate(self.columns["y"].tolist()):
            self._slots.setdefault(label, []).append(slot)


def pack(x: Tensor) -> Tensor:
    """Images in [0, 1] as bytes where ``unpack`` gives the same back; else as they are."""
    if x.dtype == torch.uint8:
        return x
    bytes_ = (x * 255).round().clamp(0, 255).to(torch.uint8)
    return bytes_ if torch.equal(to_unit(bytes_, x.dtype), x) else x


def unpack(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What ``pack`` was given, in ``dtype``; bytes stay bytes where bytes are asked for."""
    return x if x.dtype == dtype else to_unit(x, dtype) if x.dtype == torch.uint8 else x.to(dtype)


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
