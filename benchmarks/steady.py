"""Whether a step costs at the end of a long stream what it cost at its start.

Run ``python -m benchmarks.steady --steps 10000 --json OUT``; finished methods are kept in ``OUT``
and not run again. After ``--steps`` steps an adapter and a fresh twin of 100 steps take turns on
the same batches: a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import tta
from benchmarks.files import write_json

_BATCH, _SIDE, _CLASSES = 8, 16, 10
_EARLY, _TURNS = 100, 400
# Banks that fill within the first steps: while one fills, a step grows by its search, up to the
# capacity, which a tiny network shows larger than any real one. Views cost time and keep nothing.
_SMALLER: dict[str, dict[str, Any]] = {
    "adanpc": {"capacity": 512},
    "adanpc-bn": {"capacity": 512},
    "adacontrast": {"queue_size": 512, "bank_size": 512},
    **{name: {"num_views": 2} for name in ("cotta", "memo", "petal")},
}


def tiny_model() -> nn.Module:
    """Two convolutions with BatchNorm and a classifier, weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, _CLASSES)),
        )


def measure(method: str, steps: int) -> dict[str, Any]:
    """Time and memory of a method late in a stream, over those early in it.

    Args:
        method: Registered name.
        steps: Length of the stream before the comparison.

    Returns:
        ``early_ms`` and ``late_ms`` (medians of 400 steps each, in turn), their ``time_ratio``,
        and ``memory_ratio``: resident memory at the end over that after a tenth of the stream.

    Raises:
        tta.AdapterError: If the method does not fit the model.
    """
    from tqdm import trange

    old = _made(method)
    early = 0.0
    for step in trange(steps, desc=method, unit="step", disable=None, leave=False):
        old(_images(step))
        if step == max(_EARLY, steps // 10):
            early = _resident()
    late = _resident()
    twin = _made(method)
    for step in range(_EARLY):
        twin(_images(step))
    times: dict[str, list[float]] = {"early": [], "late": []}
    for turn in range(_TURNS):
        x = _images(steps + turn)
        pair = [("early", twin), ("late", old)]
        for name, adapter in pair if turn % 2 else reversed(pair):  # the first fetches the images
            started = time.perf_counter()
            adapter(x)
            times[name].append(time.perf_counter() - started)
    at = {name: median(found) for name, found in times.items()}
    return {
        "method": method,
        "steps": steps,
        "early_ms": round(1e3 * at["early"], 3),
        "late_ms": round(1e3 * at["late"], 3),
        "time_ratio": round(at["late"] / at["early"], 4),
        "memory_ratio": round(late / early, 4),
    }


def _made(method: str) -> tta.Adapter:
    adapter = tta.wrap(tiny_model(), method, **_SMALLER.get(method, {}))
    if adapter.needs.source_data:
        x, y = _images(-1), torch.arange(_BATCH) % _CLASSES
        adapter.fit_source([(x, y) if adapter.needs.source_labels else x] * 4)
    return adapter


def _images(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step + 1)
    return torch.rand(_BATCH, 3, _SIDE, _SIDE, generator=generator)


def _resident() -> float:
    import psutil

    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure what is not measured yet, print a line a method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--method", nargs="*", default=["*"], help="names or patterns")
    parser.add_argument("--json", type=Path, required=True, help="figures, kept as they come")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a tiny model gains nothing from more, and loses steadiness
    kept = json.loads(given.json.read_text("utf-8")) if given.json.exists() else {}
    rows = kept.get("rows", [])
    known = {row["method"] for row in rows if row["steps"] == given.steps}
    names = [name for pattern in given.method for name in tta.list_adapters(pattern)]
    for name in dict.fromkeys(names):
        if name not in known:
            try:
                rows.append(measure(name, given.steps))
            except tta.AdapterError as error:
                sys.stderr.write(f"left out {name}: {error}\n")
                continue
            write_json(given.json, {"rows": rows})
            sys.stdout.write(f"{json.dumps(rows[-1])}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
