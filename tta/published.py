"""Figures that others published for a method, each with where it stands.

An adapter's module keeps its own as ``PUBLISHED``; ``tta-bench reproduce`` sets them beside ours. A
figure without a source has no place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_PLACES = ("cifar10-c/{}/wrn-28-10", "cifar100-c/{}/resnext-29", "imagenet-c/{}-5k/resnet50")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published error.

    Attributes:
        stream: Name of the stream.
        protocol: Order, reset policy and images of the source: ``reset-50k``, ``continual-5k`` …
        backbone: Network and weights: ``wrn-28-10`` …
        error_pct: Mean over the corruptions (at severity 5) of the error in percent.
        source: Paper (with arXiv id), repository or weight file that says it.
        place: Table, section or file of the source.
        std: Its standard deviation over seeds, where the source gives one.
        seeds: Number of seeds, where the source says it.
        options: Options of the method that the figure was made with, beside our presets.
        note: What else a reader must know.
    """

    stream: str
    protocol: str
    backbone: str
    error_pct: float
    source: str
    place: str
    std: float | None = None
    seeds: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """``stream/protocol/backbone``."""
        return f"{self.stream}/{self.protocol}/{self.backbone}"


def figures(
    source: str, place: str, errors: Mapping[str, float], **common: Any
) -> tuple[Published, ...]:
    """Figures that stand in one place.

    Args:
        source: As in ``Published``.
        place: As in ``Published``.
        errors: ``stream/protocol/backbone`` to the error in percent.
        **common: Other fields of ``Published``, the same for all.
    """
    made = []
    for key, error in errors.items():
        stream, protocol, backbone = key.split("/")
        made.append(
            Published(
                stream=stream,
                protocol=protocol,
                backbone=backbone,
                error_pct=error,
                source=source,
                place=place,
                **common,
            )
        )
    return tuple(made)


def doebler_table(**tables: tuple[float, float, float]) -> tuple[Published, ...]:
    """Figures of the widely used re-implementation, five seeds, severity 5.

    Args:
        **tables: ``continual`` and ``mixed`` (all corruptions shuffled into one stream): errors on
            CIFAR-10-C (WideResNet-28-10), CIFAR-100-C (ResNeXt-29 AugMix), both in batches of 200,
            and on 5,000 images of ImageNet-C (ResNet-50, batch 64).
    """
    names = {"continual": "continual", "mixed": "mixed domains"}
    return tuple(
        figure
        for table, errors in tables.items()
        for figure in figures(
            "mariodoebler/test-time-adaptation",
            f"classification/benchmark.md, {names[table]}",
            {place.format(table): error for place, error in zip(_PLACES, errors, strict=True)},
            seeds=5,
        )
    )
