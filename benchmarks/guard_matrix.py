"""What a guard and a label-free accuracy estimate are worth: ``python -m benchmarks.guard_matrix``.

Every cell is an ordinary run in the results folder: finished ones are read, killed ones go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.errors import UsageError
from benchmarks.runner import run
from benchmarks.spec import RunSpec, resolve
from streams.errors import StreamError
from tta.errors import AdapterError

COLLAPSE = ("tent", "eata", "cotta", "deyo", "rmt")
ESTIMATE = ("tent", "eata", "deyo", "cotta")
SETTINGS = ("continual", "correlated", "label-shift")
FACTOR = 10.0


class Case(NamedTuple):
    """A stream: what is asked of ``resolve``, and the factor on the learning rates."""

    name: str
    factor: float
    fields: dict[str, Any]


def cases(num_examples: int | None) -> list[Case]:
    """The streams of the collapse matrix; ``num_examples`` bounds all of them."""

    def most(images: int | None) -> int | None:
        given = [n for n in (images, num_examples) if n is not None]
        return min(given) if given else None

    recurring = {"setting_options": {"visits": 20, "base": "continual"}, "batch_size": 200}
    single = {"setting": "continual", "backbone": "fashion-resnet-gn", "batch_size": 1}
    return [
        Case(
            "recurring x 20",
            FACTOR,
            {"setting": "recurring", "num_examples": most(400), **recurring},
        ),
        Case("correlated", FACTOR, {"setting": "correlated", "num_examples": most(None)}),
        Case("batch size 1, GroupNorm", FACTOR, {**single, "num_examples": most(1000)}),
        Case("continual", 1.0, {"setting": "continual", "num_examples": most(None)}),
    ]


def collapse_specs(
    methods: Sequence[str], num_examples: int | None, seed: int, named: str = ""
) -> Iterator[tuple[str, str, RunSpec, RunSpec]]:
    """Case, method, and the run without and with a guard, of the cases that begin with ``named``.

    Raises:
        UsageError: If none does.
    """
    chosen = [case for case in cases(num_examples) if case.name.startswith(named)]
    if not chosen:
        every = ", ".join(case.name for case in cases(None))
        raise UsageError(f"no case begins with {named!r}; there are: {every}")
    for case in chosen:
        for method in methods:
            rate = float(resolve(method, "fashion-mnist-c").config["lr"])
            options = {"lr": rate * case.factor}
            plain, guarded = (
                resolve(
                    method,
                    "fashion-mnist-c",
                    options=options,
                    guard=guard,
                    seed=seed,
                    **case.fields,
                )
                for guard in (None, {"action": "rollback"})
            )
            yield case.name, method, plain, guarded


def collapse(
    out: Path, methods: Sequence[str], num_examples: int | None, seed: int, named: str = ""
) -> str:
    """Run the collapse matrix; a Markdown table."""
    lines = [
        "| stream | method | source | without | with guard | alarms | answered by the source |"
    ]
    lines.append("|---" * 7 + "|")
    _say(lines)
    for name, method, plain, guarded in collapse_specs(methods, num_examples, seed, named):
        without, row = (run(spec, out, resume=True) for spec in (plain, guarded))
        lines.append(
            f"| {name} | {method} | {row['source_error_pct']:.2f} | {without['error_pct']:.2f} "
            f"| {row['error_pct']:.2f} | {row['guard_alarms']} | {row['guard_source_pct']:.0f} % |"
        )
        _say(lines[-1:])
    return "\n".join(lines)


def estimate(
    out: Path, methods: Sequence[str], num_examples: int | None, seed: int, **fields: Any
) -> str:
    """Run the matrix of the estimate; a Markdown table."""
    lines = ["| setting | method | error | estimate | confidence | agreement |", "|---" * 6 + "|"]
    _say(lines)
    stream = fields.pop("stream")
    for setting in fields.pop("settings", SETTINGS):
        for method in methods:
            spec = resolve(
                method,
                stream,
                setting=setting,
                num_examples=num_examples,
                seed=seed,
                guard={"action": "watch", "estimate": True, "every": 1, "window": 2},
                **fields,
            )
            row = run(spec, out, resume=True)
            names = ("error_pct", "estimate_mae", "confidence_mae", "agreement_mae")
            cells = " | ".join(f"{row[name]:.2f}" for name in names)
            lines.append(f"| {setting} | {method} | {cells} |")
            _say(lines[-1:])
    return "\n".join(lines)


def _say(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main() -> int:
    """Parse the arguments, run what is missing, print the table as it grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("collapse", "estimate"))
    parser.add_argument("--out", type=Path, default=Path("results/guard"))
    parser.add_argument("--methods", help="names, separated by commas")
    parser.add_argument("--num-examples", type=int, help="images of each corruption at most")
    parser.add_argument("--case", default="", help="of collapse: the start of a stream's name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stream", default="fashion-mnist-c", help="of the estimate")
    parser.add_argument("--backbone", help="of the estimate; the stream's own by default")
    parser.add_argument("--data-dir", help="of the estimate")
    parser.add_argument("--batch-size", type=int, help="of the estimate; the setting's by default")
    parser.add_argument("--settings", help="of the estimate: names, separated by commas")
    given = parser.parse_args()
    default = COLLAPSE if given.what == "collapse" else ESTIMATE
    methods = given.methods.split(",") if given.methods else default
    try:
        if given.what == "collapse":
            collapse(given.out, methods, given.num_examples, given.seed, given.case)
        else:
            names = ("stream", "backbone", "data_dir", "batch_size")
            fields = {name: getattr(given, name) for name in names}
            fields["settings"] = given.settings.split(",") if given.settings else SETTINGS
            estimate(given.out, methods, given.num_examples, given.seed, **fields)
    except (UsageError, AdapterError, StreamError) as error:
        sys.stderr.write(f"guard_matrix: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
