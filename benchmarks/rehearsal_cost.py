"""Cost of rehearsal over a long life: seconds an experience and bytes of state, early and late.

``python -m benchmarks.rehearsal_cost`` lets a small network meet 1,000 experiences of split
Fashion-MNIST (chunks of eight samples, one pass) with each rehearsal strategy, and prints the
medians of two windows of the same run. A loop that joins data sets or rebuilds its loaders gets
slower with every experience; a reservoir does not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import streams
from continual import Learner, LearnerConfig, create_plugins
from continual.models import build

METHODS = ("naive", "replay", "der-pp", "a-gem", "power-law-replay")


def measure(method: str, experiences: int, chunk: int = 8) -> dict[str, Any]:
    """Medians over the experiences 10 % to 20 % and the last 10 % of one life.

    Args:
        method: Strategies joined by ``+``.
        experiences: Length of the life.
        chunk: Samples of an experience.
    """
    stream = streams.create_learning(
        "split-fashion-mnist", setting="online", setting_options={"chunk": chunk}
    )
    items = stream.experiences
    model: nn.Module = build("small-cnn", stream.num_classes, stream.image_shape, seed=0)
    learner = Learner(
        model, stream.num_classes, LearnerConfig(batch_size=chunk), create_plugins(method)
    )
    seconds, sizes = [], []
    for number in range(experiences):
        started = time.perf_counter()
        learner.learn(items[number % len(items)])
        seconds.append(time.perf_counter() - started)
        if number in (experiences // 5, experiences - 1):
            sizes.append(_bytes([plugin.state_dict() for plugin in learner.plugins]))
    tenth = experiences // 10
    early = statistics.median(seconds[tenth : 2 * tenth])
    late = statistics.median(seconds[-tenth:])
    return {
        "method": method,
        "experiences": experiences,
        "early_ms": 1000 * early,
        "late_ms": 1000 * late,
        "ratio": late / early,
        "early_state_kib": sizes[0] / 1024,
        "late_state_kib": sizes[1] / 1024,
    }


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return 8


def main(words: Sequence[str] | None = None) -> None:
    """Print a row a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", action="append", help="Strategy; repeat. All by default.")
    parser.add_argument("--experiences", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    methods = given.method or METHODS
    if given.json:
        print(json.dumps([measure(name, given.experiences) for name in methods], indent=2))
        return
    print("| method | ms an experience, early | late | ratio | state KiB, early | late |")
    print("|---|---|---|---|---|---|")
    for name in methods:
        row = measure(name, given.experiences)
        cells = (f"{row[k]:.2f}" for k in ("early_ms", "late_ms", "ratio"))
        sizes = (f"{row[k]:.0f}" for k in ("early_state_kib", "late_state_kib"))
        print(f"| {name} | {' | '.join([*cells, *sizes])} |", flush=True)


if __name__ == "__main__":
    main()
