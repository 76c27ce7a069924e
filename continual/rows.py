"""Storage of a bounded number of rows, each with named columns (image, label, logits, ...).

The tensors are allocated once and written with one copy a call. The column ``x`` holds images in
[0, 1]. They are kept as bytes where that loses nothing, which is so for all images that were read
from bytes and not augmented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streams.types import to_unit
from tta.errors import AdapterError


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


def pack(x: Tensor) -> Tensor:
    """Images in [0, 1] as bytes where ``unpack`` gives the same back; else as they are."""
    if x.dtype == torch.uint8:
        return x
    bytes_ = (x * 255).round().clamp(0, 255).to(torch.uint8)
    return bytes_ if torch.equal(to_unit(bytes_, x.dtype), x) else x


def unpack(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What ``pack`` was given, in ``dtype``; bytes stay bytes where bytes are asked for."""
    return x if x.dtype == dtype else to_unit(x, dtype) if x.dtype == torch.uint8 else x.to(dtype)
