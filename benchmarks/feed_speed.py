"""Speed of the feed: ImageNet-C generated as it is needed, beside reading its official files.

Run ``python -m benchmarks.feed_speed --data-dir DIR --json OUT``; ``DIR`` holds clean ImageNet
images as ``imagenet-c`` takes them. The official side reads JPEG files of the same images, written
once to a temporary folder in the official layout, as the 70 GB archive holds them. Every round
times each side once, in turn.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import streams
from benchmarks.files import write_json
from streams.feed import batches
from streams.types import Stream

WORKERS = (0, 1, 2)
_QUALITY = 85  # of the official files


def generated(data_dir: Path, images: int, corruptions: Sequence[str] | None) -> Stream:
    """``imagenet-c`` at severity 5, made from the clean images below ``data_dir``."""
    return streams.create(
        "imagenet-c",
        data_dir=data_dir,
        severity=(5,),
        corruptions=corruptions,
        num_examples=images,
        batch_size=16,
    )


def write_official(stream: Stream, folder: Path) -> Path:
    """The images of a stream as JPEG files in the layout of the official archive."""
    from PIL import Image
    from tqdm import tqdm

    from streams.robustbench_bridge import imagenet_class_to_id

    wnids = {label: wnid for wnid, label in imagenet_class_to_id().items()}
    for batch in tqdm(stream, unit="batch", desc="official files", disable=None):
        pixels = (batch.x * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for image, label, index in zip(pixels, batch.y.tolist(), batch.index.tolist(), strict=True):
            place = folder / batch.domain.partition("/")[0] / "5" / wnids[label]
            place.mkdir(parents=True, exist_ok=True)
            coded = io.BytesIO()
            Image.fromarray(image).save(coded, "JPEG", quality=_QUALITY)
            (place / f"{index:08d}.JPEG").write_bytes(coded.getvalue())
    return folder


def compare(data_dir: Path, images: int, rounds: int) -> dict[str, Any]:
    """Images per second of both sides with 0, 1 and 2 workers.

    Args:
        data_dir: Folder of clean ImageNet images.
        images: Images of each of the 15 corruptions.
        rounds: Passes over the stream on each side.
    """
    ours = generated(data_dir, images, None)
    with tempfile.TemporaryDirectory() as folder:
        official = generated(write_official(ours, Path(folder)), images, None)
        assert official.provenance.kind == "official"
        sides = {}
        for workers in WORKERS:
            sides[f"generated, {workers} workers"] = (ours, workers)
            sides[f"official files, {workers} workers"] = (official, workers)
        speeds = measure(sides, rounds)
    return {"images": len(ours.plan.positions), "rounds": rounds, "images_per_second": speeds}


def measure(sides: Mapping[str, tuple[Stream, int]], rounds: int) -> dict[str, float]:
    """Images per second of each side (a stream and its number of workers), median over rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (stream, workers) in sides.items():
            feed = iter(batches(stream, workers))
            next(feed)  # workers start with the first batch
            started, images = time.perf_counter(), 0
            for batch in islice(feed, len(stream) - 1):
                images += len(batch.y)
            speeds[name].append(images / (time.perf_counter() - started))
    return {name: round(median(found), 1) for name, found in speeds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16, help="images a corruption")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args(arguments)
    found = compare(given.data_dir, given.images, given.rounds)
    for name, speed in found["images_per_second"].items():
        sys.stdout.write(f"{name:30} {speed:8.1f} images/s\n")
    if given.json:
        write_json(given.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
