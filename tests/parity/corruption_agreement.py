"""Compare the corruptions with the reference sets: statistics, pixels, a network's error.

Run ``python tests/parity/corruption_agreement.py --data DIR --weights FILE`` with the folder that
holds ``clean.npy``, ``labels.npy``, one array per corruption at severity 5 and
``reference_statistics.json``, and a public ResNet-32 checkpoint. With ``--imagenet DIR`` (the
folder of ``statistics.json`` and ``deterministic.npz``) and ``--photographs DIR`` (one folder per
class) the ``imagenet`` profile is compared too, see ``imagenet_agreement.py``. Exits 0 only if all
holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout as it is

from streams.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt, frost_source
from tta.architectures import CifarResNet, rename_public_keys

DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
"""Corruptions without a random draw, whose pixels can be compared."""

WIDE = ("snow", "frost", "fog", "glass_blur", "elastic_transform", "motion_blur", "spatter")
"""Corruptions whose few draws per image leave more sampling error: 8 % instead of 3 %."""

ERROR_BAND = 2.0
"""Points of error by which a network may differ between our images and the reference."""


class Statistics(NamedTuple):
    """Change of the pixels in grey levels, ours and the reference's."""

    name: str
    severity: int
    mean_abs: tuple[float, float]
    mean: tuple[float, float]
    std: tuple[float, float]
    band_pct: float
    milliseconds: float

    @property
    def deviation_pct(self) -> float:
        """Relative difference of the mean absolute change."""
        return 100 * (self.mean_abs[0] / self.mean_abs[1] - 1)

    @property
    def holds(self) -> bool:
        """Whether the difference is inside the band."""
        return abs(self.deviation_pct) <= self.band_pct


class Pixels(NamedTuple):
    """Grey-level differences to a reference array."""

    name: str
    equal_pct: float
    within_two_pct: float
    largest: int

    @property
    def holds(self) -> bool:
        """Whether 99 % of the values are within two grey levels."""
        return self.within_two_pct >= 99


def load_images(path: Path) -> Tensor:
    """Images uint8 ``(N, 3, H, W)`` from an array ``(N, H, W, 3)``."""
    return torch.from_numpy(np.load(path, allow_pickle=False).transpose(0, 3, 1, 2).copy())


def statistics(data: Path, names: Iterable[str]) -> Iterator[Statistics]:
    """Statistics of the change on the first 500 images at every severity."""
    table = json.loads((data / "reference_statistics.json").read_text())["table"]
    clean = load_images(data / "clean.npy")[:500]
    old = clean.numpy().astype(np.int16)
    for name in names:
        for severity in range(1, 6):
            start = time.perf_counter()
            new = corrupt(clean, name, severity, ids=range(len(clean)))
            seconds = time.perf_counter() - start
            change: NDArray[np.int16] = new.numpy() - old
            wanted = table[f"{name}_{severity}"]
            yield Statistics(
                name=name,
                severity=severity,
                mean_abs=(float(np.abs(change).mean()), wanted["mean_abs"]),
                mean=(float(change.mean()), wanted["mean_diff"]),
                std=(float(change.std()), wanted["std_diff"]),
                band_pct=8.0 if name in WIDE else 3.0,
                milliseconds=1000 * seconds / len(clean),
            )


def pixels(data: Path) -> Iterator[Pixels]:
    """Differences at severity 5 for the corruptions without a random draw."""
    clean = load_images(data / "clean.npy")
    for name in DETERMINISTIC:
        ours = corrupt(clean, name, 5, ids=range(len(clean))).numpy().astype(np.int16)
        difference = np.abs(ours - load_images(data / f"{name}.npy").numpy())
        yield Pixels(
            name=name,
            equal_pct=100 * float((difference == 0).mean()),
            within_two_pct=100 * float((difference <= 2).mean()),
            largest=int(difference.max()),
        )


class Judge:
    """A ResNet-32 that reads 8-bit images; normalisation layers are folded for speed."""

    def __init__(self, weights: Path, labels: Path) -> None:
        state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
        self._model = CifarResNet(32)
        self._model.load_state_dict(rename_public_keys(state))
        self._model.eval()
        for module in list(self._model.modules()):
            for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
                if hasattr(module, conv):
                    fused = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                    setattr(module, conv, fused)
                    setattr(module, norm, nn.Identity())
        self._model.to(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(np.load(labels, allow_pickle=False)).long()
        self._mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self._std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    @torch.inference_mode()
    def error_pct(self, images: Tensor) -> float:
        """Share of wrong classes on the first images, uint8 ``(N, 3, 32, 32)``, in percent."""
        wrong = 0
        known = self._labels[: len(images)]
        batches = zip(torch.split(images, 50), torch.split(known, 50), strict=True)
        for part, labels in batches:
            x = (part.float() / 255 - self._mean) / self._std
            logits = self._model(x.contiguous(memory_format=torch.channels_last))
            wrong += int((logits.argmax(1) != labels).sum())
        return 100 * wrong / len(images)


def errors(data: Path, weights: Path) -> Iterator[tuple[str, float, float]]:
    """Error in percent at severity 5 on our images and on the reference arrays."""
    judge = Judge(weights, data / "labels.npy")
    clean = load_images(data / "clean.npy")
    for name in CORRUPTIONS:
        ours = judge.error_pct(corrupt(clean, name, 5, ids=range(len(clean))))
        yield name, ours, judge.error_pct(load_images(data / f"{name}.npy"))


def main(arguments: list[str] | None = None) -> int:
    """Print the three tables; 0 if all rows hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the reference arrays")
    parser.add_argument("--weights", type=Path, required=True, help="public ResNet-32 checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="threads of the network")
    parser.add_argument("--imagenet", type=Path, help="folder of the reference at 224x224")
    parser.add_argument("--photographs", type=Path, help="folder of its images")
    parser.add_argument("--seeds", type=int, default=10, help="seeds to average over at 224x224")
    options = parser.parse_args(arguments)
    if (options.imagenet is None) != (options.photographs is None):
        parser.error("--imagenet and --photographs go together")
    torch.set_num_threads(options.threads)
    holds = True

    print(f"frost: {frost_source()}")
    print("\n1. change of the pixels, grey levels: ours (reference), 500 images")
    print(f"{'corruption':<20}{'mean abs':>18}{'dev %':>8}{'mean':>17}{'std':>17}{'ms/image':>10}")
    cost = []
    for row in statistics(options.data, CORRUPTIONS + EXTRA_CORRUPTIONS):
        holds &= row.holds
        cost += [row.milliseconds] if row.name in CORRUPTIONS else []
        pairs = [f"{a:.2f} ({b:.2f})" for a, b in (row.mean_abs, row.mean, row.std)]
        print(
            f"{row.name + f' {row.severity}':<20}{pairs[0]:>18}{row.deviation_pct:>+8.2f}"
            f"{pairs[1]:>17}{pairs[2]:>17}{row.milliseconds:>10.3f}{_mark(row.holds)}"
        )
    print(f"mean of the 15 standard corruptions: {np.mean(cost):.3f} ms/image")

    print("\n2. values at severity 5 against the reference arrays, 2,000 images")
    print(f"{'corruption':<20}{'equal %':>10}{'within 2 %':>12}{'largest':>9}")
    for same in pixels(options.data):
        holds &= same.holds
        print(
            f"{same.name:<20}{same.equal_pct:>10.3f}{same.within_two_pct:>12.3f}"
            f"{same.largest:>9}{_mark(same.holds)}"
        )

    print("\n3. error of ResNet-32 at severity 5, percent of 2,000 images")
    print(f"{'corruption':<20}{'ours':>8}{'reference':>11}{'difference':>12}")
    for name, ours, reference in errors(options.data, options.weights):
        close = abs(ours - reference) <= ERROR_BAND
        holds &= close
        print(f"{name:<20}{ours:>8.2f}{reference:>11.2f}{ours - reference:>+12.2f}{_mark(close)}")
    if options.imagenet:
        sys.path.insert(0, str(Path(__file__).parent))
        from imagenet_agreement import report

        holds &= report(options.imagenet, options.photographs, options.seeds)
    print("\nall hold" if holds else "\nFAILED: see the marked rows")
    return 0 if holds else 1


def _mark(holds: bool) -> str:
    return "" if holds else "   <-- outside"


if __name__ == "__main__":
    sys.exit(main())
