"""From rows and ``steps.parquet`` to groups of entries: what the charts and tables are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.leaderboard import VARIANT, by_group, leaderboard, name_cell
from benchmarks.leaderboard_columns import GROUP
from benchmarks.report.steps import Steps, read_steps
from benchmarks.results import Found, find_all, find_stores
from benchmarks.store import Record, Store
from streams.jsonfiles import load_json, parse_json

Row = dict[str, Any]
_LEARNING = "class_incremental_final_accuracy_pct"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run; ``folder``, ``spec`` and ``steps`` are missing where its folder is."""

    row: Row
    folder: Path | None
    spec: Row | None
    steps: Steps | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a leaderboard, and the runs it is the mean of.

    Attributes:
        number: Position among all entries of the page.
        label: Method, with what tells it apart from others of its method in the group.
        variant: Place among those others, from 0.
        row: Row of the leaderboard.
        runs: Its runs, by seed.
    """

    number: int
    label: str
    variant: int
    row: Row
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """Registered name of the method."""
        return str(self.row["method"])


@dataclass(frozen=True, kw_only=True)
class Group:
    """Entries that may be ranked against each other, best first.

    Attributes:
        label: Stream, setting and backbone, with what tells it apart from the other groups.
        title: Protocol, backbone, weights, provenance and dtype.
        learning: Whether its stream is one of learning.
        entries: The entries.
    """

    label: str
    title: str
    learning: bool
    entries: tuple[Entry, ...]

    @property
    def first(self) -> Row:
        """Row of the best entry, for what all entries share."""
        return self.entries[0].row

    @property
    def runs(self) -> list[Run]:
        """All runs of the group."""
        return [run for entry in self.entries for run in entry.runs]

    @property
    def source(self) -> Entry | None:
        """The source model's entry."""
        return next((entry for entry in self.entries if entry.method == "source"), None)


@dataclass(frozen=True)
class Results:
    """All that a page is about; ``failed`` are records of the stores."""

    groups: tuple[Group, ...]
    failed: tuple[Record, ...] = field(default=())

    @property
    def runs(self) -> list[Run]:
        """All finished runs."""
        return [run for group in self.groups for run in group.runs]

    def methods(self, *, learning: bool) -> list[str]:
        """Sorted names of the methods on streams that are of learning, or that are not."""
        groups = [group for group in self.groups if group.learning is learning]
        return sorted({entry.method for group in groups for entry in group.entries})


def read(
    roots: Sequence[Path], watch: Callable[[list[Found]], Iterable[Found]] = lambda found: found
) -> Results:
    """Finished runs below the given folders, grouped as the leaderboard ranks them.

    Args:
        roots: Results folders, searched in depth.
        watch: Wraps the runs while the runs' files are read, for a progress bar.

    Raises:
        UsageError: If a folder is missing, holds no finished run, or a file is damaged.
    """
    found = {one.run_id: one for one in reversed(find_all(roots))}  # the first of each counts
    if not found:
        raise UsageError(f"no finished run in {', '.join(map(str, roots))}")
    members: dict[tuple[str, ...], list[Run]] = {}
    for one in watch(list(found.values())):
        line = leaderboard([one.row])[0]
        members.setdefault(_key(line), []).append(_run(one.row, one.folder))
    ranked = by_group(leaderboard([one.row for one in found.values()]))
    labels = _group_labels([lines[0] for _, lines in ranked])
    groups, number = [], 0
    for (title, lines), label in zip(ranked, labels, strict=True):
        entries: list[Entry] = []
        for line, name in zip(lines, _entry_labels(lines), strict=True):
            runs = sorted(members[_key(line)], key=lambda run: int(run.row["seed"]))
            variant = sum(entry.method == line["method"] for entry in entries)
            entries.append(
                Entry(number=number, label=name, variant=variant, row=line, runs=tuple(runs))
            )
            number += 1
        learning = _LEARNING in lines[0]
        groups.append(Group(label=label, title=title, learning=learning, entries=tuple(entries)))
    return Results(tuple(groups), tuple(failed_runs(roots)))


def failed_runs(roots: Sequence[Path]) -> list[Record]:
    """Runs that the stores below the folders know as failed, each once."""
    found: dict[str, Record] = {}
    for file in find_stores(roots):
        for record in Store(file).records():
            if record.status == "failed":
                found.setdefault(record.run_id, record)
    return list(found.values())


def _run(row: Row, folder: Path | None) -> Run:
    spec = steps = None
    if folder is not None:
        try:
            spec = load_json(folder / "spec.json")
        except (OSError, ValueError):
            spec = None  # the row alone still says most of it
        steps = read_steps(folder / "steps.parquet")
    return Run(row=row, folder=folder, spec=spec, steps=steps)


def _key(line: Mapping[str, Any]) -> tuple[str, ...]:
    names = (*GROUP, "method", "config", *VARIANT)
    return tuple(str(line.get(name)) for name in names)


def _group_labels(lines: Sequence[Row]) -> list[str]:
    """Short names of groups: facts are added until no two are alike."""

    def changed(line: Row) -> str:
        return " ".join(str(line["protocol"]).split("+")[1:])

    short = [f"{line['stream']} · {line['setting']} · {line['backbone']}" for line in lines]
    tails: tuple[Callable[[Row], str], ...] = (
        changed,
        lambda line: str(line["dtype"]),
        lambda line: str(line["weight_hash"])[:8],
        lambda line: str(line["provenance"]),
    )
    for tail in tails:
        count = Counter(short)
        short = [
            f"{name} · {tail(line)}" if count[name] > 1 and tail(line) else name
            for name, line in zip(short, lines, strict=True)
        ]
    return short


def _entry_labels(lines: Sequence[Row]) -> list[str]:
    """Method, and for several entries of one method the options in which they differ."""
    facts = [_options(line) for line in lines]
    made = []
    for line, mine in zip(lines, facts, strict=True):
        others = [
            theirs
            for other, theirs in zip(lines, facts, strict=True)
            if other is not line and other["method"] == line["method"]
        ]
        differs = [
            f"{key}={value}"
            for key, value in mine.items()
            if any(theirs.get(key) != value for theirs in others)
        ]
        made.append(" ".join([name_cell(line), *differs]))
    return made


def _options(line: Row) -> dict[str, Any]:
    config = parse_json(line["config"])
    flat = {}
    for key, value in config.items():
        # A learner's options stand by part.
        inner = value if isinstance(value, dict) else {"": value}
        flat.update({f"{key}.{name}" if name else key: item for name, item in inner.items()})
    return flat | {name: line.get(name) for name in VARIANT}
