"""Memory over a long stream: ``python -m benchmarks.soak`` prints resident MiB as it goes.

Exit status 0 if resident memory stays within the tolerance after a warm-up, 1 if it does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import streams
from streams.feed import batches

BATCH_SIZE = 8


def soak(steps: int, workers: int, progress: bool = True) -> dict[str, float | int]:
    """Draw ``steps`` batches of a recurring stream at 32x32 and watch the resident memory.

    Args:
        steps: Batches to draw.
        workers: Processes that make batches ahead; their memory counts.
        progress: Show a bar on a terminal.

    Returns:
        ``steps``, ``workers``, the median resident MiB of the second and of the last tenth of the
        stream, and their ratio ``growth_pct``.
    """
    import psutil
    from tqdm import tqdm

    images = 1000
    domains = 15
    visits = 1 + steps * BATCH_SIZE // (images * domains)
    stream = streams.create(
        "fashion-mnist-c",
        setting="recurring",
        setting_options={"visits": visits},
        num_examples=images,
        batch_size=BATCH_SIZE,
    )
    process = psutil.Process()
    every = max(1, steps // 200)
    seen: list[float] = []
    feed = islice(batches(stream, workers), steps)
    for done, _ in enumerate(tqdm(feed, total=steps, unit="step", disable=not progress or None)):
        if done % every == 0:
            family = [process, *process.children(recursive=True)]
            seen.append(sum(p.memory_info().rss for p in family) / 2**20)
    tenth = max(1, len(seen) // 10)
    early, late = (
        sorted(part)[len(part) // 2] for part in (seen[tenth : 2 * tenth], seen[-tenth:])
    )
    return {
        "steps": steps,
        "workers": workers,
        "resident_mib_early": round(early, 1),
        "resident_mib_late": round(late, 1),
        "growth_pct": round(100 * (late / early - 1), 2),
    }


def main() -> int:
    """Parse the arguments, soak, print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tolerance-pct", type=float, default=2.0)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    given = parser.parse_args()
    result = soak(given.steps, given.workers)
    line = json.dumps(result)
    if given.out:
        given.out.write_text(line + "\n", "utf-8")
    sys.stdout.write(line + "\n")
    return int(result["growth_pct"] > given.tolerance_pct)


if __name__ == "__main__":
    sys.exit(main())
