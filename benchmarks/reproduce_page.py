"""The page of the reproduced figures, written from code and record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import fill

from benchmarks.own_figures import OWN
from benchmarks.reproduce import MARKS, RULE, Reproduction
from benchmarks.reproduce_plan import NETWORKS, impossible

_INTRODUCTION = """\
# Reproduced figures

Written by `tta-bench reproduce --export docs/reproduce.md`; a test keeps it up to date. Published
figures are kept beside each method's code (`PUBLISHED` in `tta/adapters`), each with its source;
what we measured is in `benchmarks/reproduced.json`, with run ids and versions.

{counts}

{rule}

```console
$ tta-bench reproduce --method tent
```

shows a method's figures, the command that makes each, and what this machine lacks for it. `--run`
makes those for which data and weights are there, as ordinary runs in `--out` that go on where they
were interrupted; `--results DIR` takes finished runs. Only `--run` may download, where a library
fetches its own weights.

```console no-run
$ tta-bench reproduce --run --protocol cifar10/clean --data-dir DATA --out results
$ tta-bench reproduce --results results --record FILE.json --export FILE.md
```

Weight files are found by their names (below) in `DATA` and `DATA/weights`, or where torch, timm and
RobustBench keep what they fetched. `continual-5k` is RobustBench's list of 5,000 images, `50k` all
of the validation images, `label-shift-50k` 100,000 draws a corruption from them.

Without those weights most of the papers' figures cannot be made here. That the methods do what the
original code does, step by step, is shown on other ground: the page [parity](parity.md).
"""
_COMPARED = (
    "Errors are in percent, means over the corruptions at severity 5. A figure is compared with "
    "runs of the same protocol, network, normalisation, options and number of images, and with no "
    "other."
)


def page(found: Sequence[Reproduction]) -> str:
    """The whole page; nothing in it depends on this machine."""
    theirs = [item for item in found if item.figure.source != OWN]
    ours = [item for item in found if item.figure.source == OWN]
    introduction = _INTRODUCTION.format(
        counts=fill(_counts(theirs, ours), 100), rule=fill(f"{RULE} {_COMPARED}", 100)
    )
    parts = [introduction, "## Figures of papers and official code\n", *_table(theirs)]
    parts += ["\n## Figures of this repository\n", _OWN_WORDS, *_table(ours)]
    notes = [item for item in found if item.ours is not None and item.ours.note]
    if notes:
        parts += ["\n## Notes\n", *(_note(item) for item in notes)]
    parts += ["\n## What the figures need\n", *_needs(found)]
    return "\n".join(parts) + "\n"


_OWN_WORDS = """\
They need no download: another machine on which they do not come out differs in something that
matters. `continual-1000` is the first 1,000 images a corruption, without a reset.
"""


def _counts(theirs: Sequence[Reproduction], ours: Sequence[Reproduction]) -> str:
    return (
        f"Of {len(theirs)} figures that others published {_split(theirs)}. Of {len(ours)} of this "
        f"repository's own, for embedded images and shipped weights, {_split(ours)}."
    )


def _split(items: Sequence[Reproduction]) -> str:
    counted = Counter(item.status for item in items)
    return ", ".join(f"{counted[status]} {mark} {status}" for status, mark in MARKS.items())


def _table(items: Sequence[Reproduction]) -> list[str]:
    lines = [
        "| | method | stream / protocol / network | published | ours | off by | allowed | source |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for item in items:
        figure, ours = item.figure, item.ours
        options = ", ".join(f"{key}={value}" for key, value in figure.options.items())
        spread = "" if figure.std is None else f" ± {figure.std:g}"
        cells = [
            MARKS[item.status],
            f"`{item.method}`" + (f" ({options})" if options else ""),
            figure.key,
            f"{figure.error_pct:g}{spread}",
            "" if ours is None else f"{ours.error_pct:.2f}",
            signed(item.difference),
            "" if ours is None else f"{item.tolerance:.2f}",
            f"{figure.source}, {figure.place}" + (f" ({figure.note})" if figure.note else ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _note(item: Reproduction) -> str:
    assert item.ours is not None
    return f"- `{item.method}` on {item.figure.key}: {item.ours.note}"


def _needs(found: Sequence[Reproduction]) -> list[str]:
    used = {item.figure.backbone for item in found}
    lines = [
        "| network | `--backbone` | weights | file | mean and deviation |",
        "|---|---|---|---|---|",
    ]
    for name, network in NETWORKS.items():
        if name in used:
            mean, std = network.constants
            constants = f"{_numbers(mean)}; {_numbers(std)}" + (
                " (given)" if network.chosen else ""
            )
            file = f"`{network.file}`" if network.file else ""
            lines.append(
                f"| {name} | `{network.spec}` | {network.weights} | {file} | {constants} |"
            )
    cannot = {item.figure.key: impossible(item.figure) for item in found}
    lines += ["", "Cannot be run by anybody here:", ""]
    lines += [f"- {key}: {reason}" for key, reason in cannot.items() if reason]
    return lines


def signed(value: float | None) -> str:
    """Points with their sign, two decimals; empty where there is no value."""
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
