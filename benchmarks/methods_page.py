"""The page of the methods, written from the code: ``python -m benchmarks.methods_page FILE``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import tta
from benchmarks.protocols import presets
from tta.adapter import Adapter
from tta.factory import adapters
from tta.published import Published

_INTRODUCTION = """\
# Methods

Written from the code by `python -m benchmarks.methods_page docs/methods.md`; a test keeps it up to
date. Each section gives the paper, the reference code, every deviation from it, the options with
their defaults, the presets by stream, and the published figures with their source, which the page
[reproduced figures](reproduce.md) sets beside ours. How the outputs were compared with those of the
original implementations is on the page [parity](parity.md).

`tta-bench describe --method NAME` prints the options in a terminal.

**answers** says whether the logits of a batch come from before or after its update; **needs** what
a method asks for beside the batch; **layers** the kinds of normalisation layers of which one must
be there.
"""


def page() -> str:
    """The whole page."""
    names = tta.list_adapters()
    lines = [
        _INTRODUCTION,
        "| method | what it does | answers | needs | layers |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        cls = adapters.get(name)
        summary = adapters.summary(name).partition(": ")[2].rstrip(".")
        cells = (f"[`{name}`](#{name})", summary, cls.predicts, _needs(cls), _layers(cls))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + "".join(_section(name) for name in names)


def _needs(cls: type[Adapter]) -> str:
    asked = ["gradients"] if cls.needs.gradients else []
    if cls.needs.source_data:
        asked.append("labelled source images" if cls.needs.source_labels else "source images")
    return ", ".join(asked)


def _layers(cls: type[Adapter]) -> str:
    return ", ".join(sorted(cls.needs.norms)) or "any"


def _section(name: str) -> str:
    cls = adapters.get(name)
    module = import_module(cls.__module__)
    _, _, text = cleandoc(module.__doc__ or "").partition("\n")
    text = re.sub(r"``(.+?)``", r"`\1`", text.strip())
    text = text.replace("\nDeviations", "\n**Deviations**")
    parts = [f"\n## {name}\n", adapters.summary(name), "", text, "", *_options(cls)]
    parts += _presets(name)
    parts += _published(getattr(module, "PUBLISHED", ()))
    return "\n".join(parts).rstrip() + "\n"


def _options(cls: type[Adapter]) -> list[str]:
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for item in fields(cls.Config):
        default = getattr(cls.Config(), item.name)
        meaning = str(item.metadata.get("doc", "")).replace("|", "\\|")
        lines.append(f"| `{item.name}` | `{_value(default)}` | {meaning} |")
    return [*lines, ""]


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _presets(name: str) -> list[str]:
    found = presets().get(name, {})
    if not found:
        return []
    same: dict[str, list[str]] = {}
    for stream, options in found.items():
        words = ", ".join(f"`{key}={_value(value)}`" for key, value in options.items())
        same.setdefault(words, []).append(stream)
    lines = [f"- {', '.join(streams)}: {words}" for words, streams in same.items()]
    return ["Presets:", "", *lines, ""]


def _published(figures: Sequence[Published]) -> list[str]:
    if not figures:
        return []
    lines = ["| published | error % | where |", "|---|---:|---|"]
    for figure in figures:
        options = [f"{name}={_value(value)}" for name, value in figure.options.items()]
        said = [f"{figure.source}, {figure.place}", *options, *filter(None, [figure.note])]
        lines.append(f"| {figure.key} | {figure.error_pct:g} | {'; '.join(said)} |")
    return [*lines, ""]


def main() -> None:
    """Write the page to the file that is named."""
    Path(sys.argv[1]).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
