"""What a guard costs where it does not check: ``python -m benchmarks.guard_cost --json OUT``.

The time of a guarded step less that of the method's own step in it. Steps in which the source model
answered are counted apart: each may cost one forward of the source.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import streams
import tta
from benchmarks.errors import UsageError
from benchmarks.files import write_json
from benchmarks.profile_feed import Feed, source_for, stream_of
from tta.backbones import load
from tta.errors import AdapterError
from tta.guard import Guard

_Call = Callable[[Tensor], Tensor]


def measure(model: nn.Module, method: str, feed: Feed, steps: int) -> dict[str, Any]:
    """What the guard of a method takes beside its steps.

    Args:
        model: Source model in eval mode; left as it is.
        method: Registered name.
        feed: Makes the batches.
        steps: How many, after two to warm up.

    Returns:
        ``step_ms`` of the method alone, ``quiet_pct`` that the guard adds where it does not check,
        ``check_forwards``: what it takes where it does, in forwards of the source; each a median;
        and ``checks``, ``steps`` and ``alarms``.
    """
    adapter = tta.wrap(copy.deepcopy(model), method, guard="rollback")
    if adapter.needs.source_data:
        adapter.fit_source(source_for(adapter, feed))
    inside: list[float] = []
    whole: list[float] = []
    guarded = Guard.step

    def step(guard: Guard, owner: tta.Adapter, x: Tensor, live: _Call) -> Tensor:
        def timed(x: Tensor) -> Tensor:
            seconds, logits = _timed(live, x)
            inside.append(seconds)
            return logits

        seconds, logits = _timed(lambda x: guarded(guard, owner, x, timed), x)
        whole.append(seconds)
        return logits

    quiet, checked = [], []
    with mock.patch.object(Guard, "step", step):
        for number in range(steps + 2):
            _, x = feed.next()
            before = len(inside)
            adapter(x)
            forward, _ = _timed(lambda x: _source(model, x), x)
            # Thread pools and the first copies; a step that the guard suspended is none.
            if number < 2 or len(inside) == before:
                continue
            beside = whole[-1] - inside[-1]
            if adapter.report["guard_forwards"]:
                checked.append(beside / forward)
            else:
                quiet.append(100 * beside / inside[-1])
    return {
        "method": method,
        "batch_size": len(x),
        "step_ms": round(1e3 * median(inside), 2),
        "quiet_pct": round(median(quiet), 3) if quiet else None,
        "check_forwards": round(median(checked), 2) if checked else None,
        "checks": len(checked),
        "steps": steps,
        "alarms": int(adapter.report["guard_alarms"]),
    }


@torch.no_grad()
def _source(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


def _timed(call: _Call, x: Tensor) -> tuple[float, Tensor]:
    started = time.perf_counter()
    out = call(x)
    return time.perf_counter() - started, out


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, print a line a method and keep them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", nargs="*", default=["tent", "eata", "deyo"])
    parser.add_argument("--backbone", default="fashion-resnet")
    parser.add_argument("--checkpoint", help="of a backbone that ships none")
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        backbone = load(given.backbone, checkpoint=given.checkpoint)
        feed = Feed(stream_of(given.batch_size), backbone.input_size, "cpu")
        rows = []
        for method in given.method:
            row = measure(backbone.model.eval(), method, feed, given.steps)
            rows.append({"backbone": given.backbone, **row})
            sys.stdout.write(f"{rows[-1]}\n")
            write_json(given.json, {"rows": rows})
    except (UsageError, AdapterError, streams.StreamError) as error:
        sys.stderr.write(f"guard_cost: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
