"""Leaderboards as files: CSV with every column; Markdown, LaTeX and HTML with the errors."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.leaderboard import (
    BEST,
    TIED,
    Row,
    by_group,
    error_cell,
    group_columns,
    name_cell,
    standing,
)
from benchmarks.leaderboard_columns import DOMAIN_PREFIX, column_type, columns, domain_names


def export(rows: Sequence[Row], path: Path) -> None:
    """Write a leaderboard as CSV, Markdown, LaTeX or HTML, by the file's suffix.

    Raises:
        UsageError: For another suffix, or a file that cannot be written.
    """
    with asked_for(path) as temporary:
        temporary.write_text(_writer(path)(rows), "utf-8")


def check_suffixes(paths: Sequence[Path]) -> None:
    """Raise ``UsageError`` for a file that ``export`` has no form for."""
    for path in paths:
        _writer(path)


def to_csv(rows: Sequence[Row]) -> str:
    """All columns; empty where a value is missing, a decimal point in every float."""
    text = io.StringIO()
    names = columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_cell(name, row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def to_text(rows: Sequence[Row], suffix: str) -> str:
    """A table per ranking: rank, method, error with its interval, references, domains.

    Args:
        rows: Of ``leaderboard``.
        suffix: ``.md``, ``.tex`` or ``.html``: the template.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("benchmarks"),
        autoescape=suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"tex": escape_tex, "md": lambda text: str(text).replace("|", "\\|")}
    tables = [_table(title, group) for title, group in by_group(rows)]
    return made.get_template(f"leaderboard{suffix}").render(tables=tables)


def escape_tex(text: object) -> str:
    """Text for LaTeX: its ten special characters escaped."""
    return re.sub(r"[\\{}$&#%_~^±]", lambda match: _TEX[match[0]], str(text))


def _table(title: str, group: Sequence[Row]) -> dict[str, Any]:
    domains = list(dict.fromkeys(name for row in group for name in domain_names(row)))
    shown = group_columns(group)
    numbers = [*shown.values(), *domains]
    # In bold: the best of the ranking, and the lowest error of each domain.
    lowest = {
        name: min((row[name] for row in group if row.get(name) is not None), default=None)
        for name in domains
    }
    return {
        "title": title,
        "heads": [*shown, *(name.removeprefix(DOMAIN_PREFIX) for name in domains)],
        "rows": [
            {
                "rank": row["rank"],
                "method": name_cell(row),
                "error": error_cell(row),
                "seeds": row["seeds"],
                "best": standing(row) == BEST,
                "tied": standing(row) == TIED,
                "numbers": [
                    {
                        "text": "" if (value := row.get(name)) is None else f"{value:.2f}",
                        "bold": value is not None and value == lowest.get(name),
                    }
                    for name in numbers
                ],
            }
            for row in group
        ],
    }


def _csv_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if column_type(name) != "float":
        return str(value)
    # Ten digits, and always as a float: readers that infer types take 12 for an integer.
    return repr(float(f"{value:.10g}"))


def _writer(path: Path) -> Callable[[Sequence[Row]], str]:
    if path.suffix == ".csv":
        return to_csv
    if path.suffix in _TEXTS:
        return lambda rows: to_text(rows, path.suffix)
    raise UsageError(
        f"cannot export to {path.name!r}: use {', '.join(['.csv', *_TEXTS[:-1]])} or {_TEXTS[-1]}"
    )


_TEXTS = (".md", ".tex", ".html")
_TEX = {
    **{sign: f"\\{sign}" for sign in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
