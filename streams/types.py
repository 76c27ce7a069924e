"""What flows through the house: domains, batches, provenance, and the stream that yields them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from streams.order import Plan

Ints = NDArray[np.int64]
AnyInts = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One condition of the stream.

    Attributes:
        name: Column name in results; the corruption, with its severity where there are several.
        corruption: Name of the corruption, ``"none"`` for clean images.
        severity: 1 to 5, 0 for clean images.
    """

    name: str
    corruption: str
    severity: int


UNKNOWN = -1
"""Label of an image whose class is not among the known ones (``streams.open_set``)."""

CLEAN = Domain(name="clean", corruption="none", severity=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where the pixels come from.

    Attributes:
        kind: ``official`` (a published archive), ``generated`` (by our engine) or ``arrays``.
        detail: Names and versions that identify them (generator, its version, seed, digests).
    """

    kind: Literal["official", "generated", "arrays"]
    detail: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = ", ".join(f"{key}={value}" for key, value in self.detail.items())
        return f"{self.kind} ({words})" if words else self.kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One step of a stream.

    Attributes:
        x: Images ``(B, C, H, W)``, float32 (or the stream's dtype), in ``[0, 1]``.
        y: Labels ``(B,)`` int64; for metrics alone, no adapter sees them. -1 where the class is
            unknown, in an open set.
        domain: Name of the domain; ``"mixed"`` where the batch holds several.
        severity: Severity of the domain; 0 where it is clean or mixed.
        index: Image ids ``(B,)`` int64: with corruption and severity they determine the pixels.
        step: Position of the batch in the stream, from 0.
        domain_ids: Positions ``(B,)`` int64 in the stream's ``domains``.
    """

    x: Tensor
    y: Tensor
    domain: str
    severity: int
    index: Tensor
    step: int
    domain_ids: Tensor


class ImageSource(Protocol):
    """Pixels and labels, by position; what a new data source has to offer."""

    @property
    def name(self) -> str:
        """Name for results."""

    @property
    def num_classes(self) -> int:
        """Number of classes ``K``."""

    @property
    def labels(self) -> Ints:
        """Labels ``(N,)`` in ``[0, K)``."""

    @property
    def provenance(self) -> Provenance:
        """Where the pixels come from."""

    @property
    def digest(self) -> str:
        """Hash that changes when the pixels or labels do."""

    def check(self, domain: Domain) -> None:
        """Raise ``StreamError`` if the domain is not to be had."""

    def images(self, positions: Ints, domain: Domain) -> Tensor:
        """Images ``(B, C, H, W)`` uint8 at the given positions."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A printable, hashable, resumable plan over the pixels of a source.

    Iterating yields ``Batch`` objects in the order of the plan; nothing is read before that.
    """

    name: str
    source: ImageSource
    plan: Plan
    setting: str
    batch_size: int
    seed: int
    first_step: int = 0
    dtype: torch.dtype | None = None
    options: Mapping[str, float | int | str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of batches from ``first_step`` on."""
        return len(self.plan) - self.first_step

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.first_step, len(self.plan)):
            yield self.batch(step)

    def start_at(self, step: int) -> Stream:
        """The same stream from an absolute step on.

        Raises:
            StreamError: If the stream has fewer steps.
        """
        if not 0 <= step <= len(self.plan):
            raise StreamError(f"step {step} is not in this stream of {len(self.plan)} steps")
        return replace(self, first_step=step)

    def batch(self, step: int) -> Batch:
        """The batch at an absolute step."""
        import torch

        positions, domain_ids = self.plan.step(step)
        part = self.plan.samples(step)
        samples = np.arange(part.start, part.stop)
        present = np.unique(domain_ids)
        one = len(present) == 1
        domain = self.domains[present[0]]
        if one:
            pixels = self._pixels(positions, domain, samples)
        else:
            parts = {int(d): np.flatnonzero(domain_ids == d) for d in present}
            made = {
                d: self._pixels(positions[at], self.domains[d], samples[at])
                for d, at in parts.items()
            }
            order = np.argsort(np.concatenate(list(parts.values())))
            pixels = torch.cat(list(made.values()))[torch.from_numpy(order)]
        return Batch(
            x=to_unit(pixels, self.dtype or torch.float32),
            y=torch.from_numpy(self.source.labels[positions]),
            domain=domain.name if one else "mixed",
            severity=domain.severity if one else 0,
            index=torch.from_numpy(positions),
            step=step,
            domain_ids=torch.from_numpy(domain_ids),
        )

    def _pixels(self, positions: Ints, domain: Domain, samples: Ints) -> Tensor:
        """Images of a source, which may ask for their places ``(B,)`` in the stream."""
        placed: Any = getattr(self.source, "images_at", None)
        made: Tensor = (
            self.source.images(positions, domain)
            if placed is None
            else placed(positions, domain, samples)
        )
        return made

    def clean_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The distinct images of the plan without corruption, in order: ``(x, y)`` pairs.

        Raises:
            StreamError: If the source has no clean images.
        """
        import torch

        self.source.check(CLEAN)
        positions = np.unique(self.plan.positions)
        positions = positions[self.source.labels[positions] != UNKNOWN]
        for first in range(0, len(positions), self.batch_size):
            part = positions[first : first + self.batch_size]
            pixels = self.source.images(part, CLEAN)
            labels = torch.from_numpy(self.source.labels[part])
            yield to_unit(pixels, self.dtype or torch.float32), labels

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Domains in the order of the plan."""
        return self.plan.domains

    @property
    def num_classes(self) -> int:
        """Number of classes of the source."""
        return self.source.num_classes

    @property
    def provenance(self) -> Provenance:
        """Where the pixels come from."""
        return self.source.provenance

    @property
    def reset_steps(self) -> tuple[int, ...]:
        """Steps before which the setting resets the adapter."""
        return self.plan.reset_steps

    @cached_property
    def hash(self) -> str:
        """Hex digest of order, batches, labels, pixel identity, seed and changed options."""
        given = [f"{key}={value!r}" for key, value in sorted(self.options.items())]
        context = [self.source.digest, self.name, self.setting, str(self.seed), *given]
        return self.plan.digest(*context)

    def describe(self) -> dict[str, Any]:
        """The plan in plain values: sizes, domains, resets, labels, provenance, hash."""
        plan = self.plan
        labels = self.source.labels[plan.positions]
        known = labels != UNKNOWN
        return {
            "stream": self.name,
            "setting": self.setting,
            "options": dict(self.options),
            "steps": len(plan),
            "samples": len(plan.positions),
            "images": len(np.unique(plan.positions)),
            "batch_size": self.batch_size,
            "classes": self.num_classes,
            "seed": self.seed,
            "resets": len(plan.reset_steps),
            "visits": len(plan.visit_starts) or len(plan.domains),
            "classes_per_step": plan.distinct_per_step(labels),
            "domains_per_step": plan.distinct_per_step(plan.domain_ids),
            "provenance": str(self.provenance),
            "hash": self.hash,
            "labels": np.bincount(labels[known], minlength=self.num_classes).tolist(),
            **({} if known.all() else {"unknown": int((~known).sum())}),
            "domains": [
                {"name": d.name, "severity": d.severity, "samples": int(n), "first_step": first}
                for d, n, first in plan.domain_table()
            ],
        }


def to_unit(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 images to floating ones in ``[0, 1]``: the value over 255, exact in ``dtype``."""
    return pixels.to(dtype).div_(255)
