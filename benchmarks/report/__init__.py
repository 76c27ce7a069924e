"""One self-contained page about finished runs, and figures for paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.results import Found

TITLE = "tta-bench report"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What ``report`` wrote.

    Attributes:
        out: The page.
        size: Its bytes.
        runs: Finished runs that it shows.
        failed: Failed runs that it lists.
        groups: Rankings in it.
        figures: Files of figures.
    """

    out: Path
    size: int
    runs: int
    failed: int
    groups: int
    figures: tuple[Path, ...]


def report(
    roots: Sequence[Path],
    out: Path,
    figures: Path | None = None,
    *,
    formats: Sequence[str] = ("png", "pdf"),
    title: str = TITLE,
    progress: bool = False,
) -> Written:
    """Write one page that needs nothing but itself, and figures for paper where a folder is named.

    Args:
        roots: Results folders, searched in depth.
        out: File to write, ``.html``.
        figures: Folder for figures; made where it is not there.
        formats: Of the figures: ``png``, ``pdf`` or both.
        title: Title of the page.
        progress: Whether a bar on standard error shows how many runs have been read.

    Raises:
        UsageError: If a folder is missing or holds no finished run, a file of a run is damaged, or
            the page or a figure cannot be written.
    """
    from benchmarks.report.data import read
    from benchmarks.report.page import check_out, render, write

    check_out(out)
    results = read(roots, _bar if progress else iter)
    size = write(render(results, title), out)
    made: tuple[Path, ...] = ()
    if figures is not None:
        from benchmarks.report.figures import save_figures

        made = save_figures(results, figures, formats)
    return Written(
        out=out,
        size=size,
        runs=len(results.runs),
        failed=len(results.failed),
        groups=len(results.groups),
        figures=made,
    )


def _bar(runs: list[Found]) -> Iterable[Found]:
    from tqdm import tqdm

    from benchmarks.console import bar_size

    # disable=None keeps the bar out of files and pipes.
    bar: Iterable[Found] = tqdm(runs, desc="read", unit="run", disable=None, **bar_size())
    return bar
