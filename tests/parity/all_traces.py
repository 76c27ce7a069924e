"""Replay every golden trace in float64, print one table; exit status 1 where one is beyond 1e-8.

    python tests/parity/all_traces.py TRACES --data DIR --weights FILE [--markdown FILE]

About ten seconds a trace on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import mapping
import run_trace
from rich.console import Console
from rich.progress import track


def row(trace: Path, data: Path, weights: Path, tolerance: float) -> dict[str, Any]:
    """Name, adapter, reference, what selects its behaviour, largest difference and verdict."""
    meta = run_trace.read_meta(trace)
    repository, _, commit = meta["repository"].partition("@")
    made = {"trace": trace.stem, "reference": f"{repository} @ {commit[:7]}", "holds": False}
    try:
        method, options = mapping.adapter_of(meta)
        floor = run_trace.noise_floor(trace)
        worst = run_trace.replay(trace, data, weights)
    except run_trace.UNREADABLE as error:
        return {**made, "verdict": f"not replayed: {error}"}
    holds = worst <= (tolerance if floor is None else floor)
    chosen = {k: v for k, v in options.items() if v != _default(method, k) and k not in _TUNING}
    return {
        **made,
        "adapter": method,
        "options": ", ".join(f"{k}={_short(v)}" for k, v in sorted(chosen.items())),
        "difference": worst,
        "verdict": ("holds" if holds else "beyond") + (" in float32" if floor is not None else ""),
        "holds": holds,
    }


# Learning rates and the like: the trace's, not the behaviour's.
_TUNING = {"lr", "optimizer", "momentum", "nesterov", "betas", "weight_decay", "steps", "episodic"}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _default(method: str, option: str) -> Any:
    import tta

    return getattr(tta.adapter_config(method)(), option, None)


def main() -> int:
    """Parse the arguments, replay, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traces", type=Path, help="folder of .npz files")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10c/")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the traces")
    parser.add_argument("--tolerance", type=float, default=1e-8)
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    files = sorted(arguments.traces.glob("*.npz"))
    lines = [
        "| trace | adapter | reference | options beside the defaults | difference | verdict |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    print("\n".join(lines))
    held = 0
    for file in track(files, "replaying", console=console, disable=not console.is_terminal):
        made = row(file, arguments.data, arguments.weights, arguments.tolerance)
        held += made["holds"]
        figure = f"{made['difference']:.1e}" if "difference" in made else ""
        cells = (file.stem, made.get("adapter", ""), made["reference"], made.get("options", ""))
        lines.append("| " + " | ".join((*cells, figure, made["verdict"])) + " |")
        print(lines[-1], flush=True)
    print(f"{held} of {len(files)} traces hold at {arguments.tolerance:g}")
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", "utf-8")
    return int(held != len(files) or not files)


if __name__ == "__main__":
    sys.exit(main())
