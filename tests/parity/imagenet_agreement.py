"""Compare the ``imagenet`` profile with what the original generator made at 224x224.

The reference has 16 images and one seed, so a few draws decide its figures for frost, fog and
others. Three comparisons tell method from luck: the pixels of the corruptions without a random
draw; our statistics averaged over seeds; and the statistics of the first generation of our code
fed with the original's own random numbers, which must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streams.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt, frost_source
from streams.corruptions.registry import Job, find, find_level

WIDE = ("snow", "frost", "fog", "glass_blur", "elastic_transform", "motion_blur", "spatter")
"""Corruptions whose few draws per image leave more sampling error: 8 % instead of 3 %."""

REPLAYED = ("gaussian_noise", "shot_noise", "speckle_noise", *WIDE)
"""Corruptions whose draws of the original can be repeated (impulse noise had an unseeded one)."""

REPLAY_BAND = 0.6
"""Percent; what is left is rounding, largest in ``spatter`` 1, where it moves a few drops."""


class Pixels(NamedTuple):
    """Grey-level differences to the original's output on four images."""

    name: str
    severity: int
    equal_pct: float
    within_two_pct: float
    largest: int

    @property
    def holds(self) -> bool:
        """Whether 99 % of the values are within two grey levels."""
        return self.within_two_pct >= 99


class Statistics(NamedTuple):
    """Mean absolute change in grey levels: ours over seeds, its spread, the reference."""

    name: str
    severity: int
    ours: float
    spread_pct: float
    reference: float

    @property
    def deviation_pct(self) -> float:
        """Of our mean from the reference."""
        return 100 * (self.ours / self.reference - 1)

    @property
    def band_pct(self) -> float:
        """3 or 8 %, or three standard deviations of one seed where these are wider."""
        return max(8.0 if self.name in WIDE else 3.0, 3 * self.spread_pct)

    @property
    def holds(self) -> bool:
        """Whether the deviation is inside the band."""
        return abs(self.deviation_pct) <= self.band_pct


@dataclass(frozen=True)
class Reference:
    """The folder of the reference, and the images that it was measured on."""

    folder: Path
    table: dict[str, dict[str, float]]
    images: Tensor
    """uint8 ``(16, 3, 224, 224)``"""

    @classmethod
    def load(cls, folder: Path, photographs: Path) -> Reference:
        """Read the statistics and cut the images out of ``photographs/<wnid>/*``."""
        facts = json.loads((folder / "statistics.json").read_text())
        images = [_crop(next(iter((photographs / name).iterdir()))) for name in facts["images"]]
        pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())
        return cls(folder, facts["table"], pixels)

    def change(self, images: NDArray[Any]) -> NDArray[np.int16]:
        """Difference to the clean images."""
        return images.astype(np.int16) - self.images.numpy()


def _crop(path: Path) -> NDArray[np.uint8]:
    """Resize the shorter side to 256 if it has another length, then cut the centre."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    width, height = image.size
    short = min(width, height)
    if short != 256:
        size = (256 * width // short, 256 * height // short)
        image = image.resize(size, Image.Resampling.BILINEAR)
        width, height = image.size
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def pixels(reference: Reference) -> Iterator[Pixels]:
    """The corruptions without a random draw at severities 1, 3 and 5."""
    with np.load(reference.folder / "deterministic.npz", allow_pickle=False) as arrays:
        clean = torch.from_numpy(arrays["clean"].transpose(0, 3, 1, 2).copy())
        for key in arrays.files:
            if key == "clean":
                continue
            name, _, severity = key.rpartition("_")
            ours = corrupt(clean, name, int(severity), ids=range(len(clean)), profile="imagenet")
            wanted = arrays[key].transpose(0, 3, 1, 2).astype(np.int16)
            difference = np.abs(ours.numpy() - wanted)
            yield Pixels(
                name=name,
                severity=int(severity),
                equal_pct=100 * float((difference == 0).mean()),
                within_two_pct=100 * float((difference <= 2).mean()),
                largest=int(difference.max()),
            )


def statistics(reference: Reference, names: Iterable[str], seeds: int) -> Iterator[Statistics]:
    """Our mean over seeds beside the reference's one seed."""
    ids = range(len(reference.images))
    for name in names:
        for severity in range(1, 6):
            values = []
            for seed in range(seeds):
                new = corrupt(
                    reference.images, name, severity, ids=ids, seed=seed, profile="imagenet"
                )
                values.append(float(np.abs(reference.change(new.numpy())).mean()))
            yield Statistics(
                name=name,
                severity=severity,
                ours=float(np.mean(values)),
                spread_pct=100 * float(np.std(values) / np.mean(values)),
                reference=reference.table[f"{name}_{severity}"]["mean_abs"],
            )


def replayed(reference: Reference, names: Iterable[str]) -> Iterator[Statistics]:
    """The first generation of our code with the original's random numbers."""
    for name in names:
        for severity in range(1, 6):
            facts, level = find_level("imagenet", name, severity)
            job = Job(
                images=reference.images.numpy(),
                level=level,
                draws=_OriginalDraws(len(reference.images)),  # type: ignore[arg-type]
                profile=replace(facts, generation=1),
            )
            new = np.clip(find(name)(job), 0, 255).astype(np.uint8)
            yield Statistics(
                name=name,
                severity=severity,
                ours=float(np.abs(reference.change(new)).mean()),
                spread_pct=0,
                reference=reference.table[f"{name}_{severity}"]["mean_abs"],
            )


class _OriginalDraws:
    """One legacy stream with seed 0 for all images, as in the original."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Legacy]:
        stream = _Legacy()
        for _ in range(self._count):
            yield stream


class _Legacy:
    """The draws that our corruptions ask for, in the order in which the original makes them."""

    def __init__(self) -> None:
        self._state = np.random.RandomState(0)

    def standard_normal(self, dtype: Any, out: NDArray[Any]) -> None:
        out[...] = self._state.normal(size=(*out.shape[1:], 3)).transpose(2, 0, 1)

    def poisson(self, mean: NDArray[Any]) -> NDArray[Any]:
        return self._state.poisson(mean.transpose(1, 2, 0)).transpose(2, 0, 1)

    def normal(self, mean: float, deviation: float, shape: tuple[int, ...]) -> NDArray[Any]:
        return self._state.normal(mean, deviation, shape)

    def uniform(self, low: float, high: float, size: tuple[int, ...] | None = None) -> Any:
        values = self._state.uniform(low, high, size)
        # The original draws the displacement of the columns first.
        return values[::-1] if size is not None and len(size) == 3 else values

    def random(self, out: NDArray[Any]) -> None:
        out[...] = self._state.random_sample(out.shape)

    def integers(
        self, low: int, high: int | None = None, size: Any = None, dtype: Any = None
    ) -> Any:
        if size is None:
            return self._state.randint(low)
        # In glass blur the walk goes backward, and the step to the right is drawn first.
        passes, two, rows, columns = size
        values = self._state.randint(low, high, size=(passes, rows, columns, two))
        return values[:, ::-1, ::-1, ::-1].transpose(0, 3, 1, 2)


def report(folder: Path, photographs: Path, seeds: int) -> bool:
    """Print the three tables; whether all rows hold."""
    reference = Reference.load(folder, photographs)
    everything = CORRUPTIONS + EXTRA_CORRUPTIONS
    holds = True
    print(f"\nimagenet, 224x224, frost: {frost_source()}")
    print("\n4. values against the original's output, 4 images")
    print(f"{'corruption':<22}{'equal %':>10}{'within 2 %':>12}{'largest':>9}")
    for same in pixels(reference):
        holds &= same.holds
        print(
            f"{same.name + f' {same.severity}':<22}{same.equal_pct:>10.3f}"
            f"{same.within_two_pct:>12.3f}{same.largest:>9}{_mark(same.holds)}"
        )
    print(
        f"\n5. mean absolute change of 16 images, {seeds} seeds: ours (reference), spread of a seed"
    )
    for row in statistics(reference, everything, seeds):
        holds &= row.holds
        print(f"{_line(row)}{row.spread_pct:>8.2f}{_mark(row.holds)}")
    print("\n6. the same with the original's random numbers")
    for row in replayed(reference, REPLAYED):
        close = repeats(row)
        holds &= close
        print(f"{_line(row)}{_mark(close)}")
    return holds


def repeats(row: Statistics) -> bool:
    """Whether a replayed row holds; computed frost textures cannot repeat the photographs'."""
    procedural = row.name == "frost" and frost_source() == "procedural"
    return abs(row.deviation_pct) <= (8 if procedural else REPLAY_BAND)


def _line(row: Statistics) -> str:
    pair = f"{row.ours:.3f} ({row.reference:.3f})"
    return f"{row.name + f' {row.severity}':<22}{pair:>20}{row.deviation_pct:>+9.3f} %"


def _mark(holds: bool) -> str:
    return "" if holds else "   <-- outside"
