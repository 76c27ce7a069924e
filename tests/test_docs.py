"""Every example of the pages runs as it stands: python blocks, and the commands of console blocks.

A block opened with ```console no-run, or ```python no-run, is shown and not run. A python block
opened with ```python file=NAME is also saved under that name, as its reader is told to do.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tta
from benchmarks.cli import app
from tta.factory import adapters

ROOT = Path(tta.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("python", "console") and "no-run" not in self.words

    @property
    def file(self) -> str | None:
        named = [word.removeprefix("file=") for word in self.words if word.startswith("file=")]
        return named[0] if named else None

    @property
    def commands(self) -> list[str]:
        """Lines after ``$ tta-bench``, a trailing backslash joining the next."""
        text = self.text.replace("\\\n", " ")
        lines = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
        return [line for line in lines if line.split()[:1] == ["tta-bench"]]


def blocks_of(text: str) -> list[Block]:
    made = []
    for match in FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        made.append(Block(language, tuple(words), match["text"], line))
    return made


def run_python(block: Block, page: str) -> None:
    """Run a block as a module of its own, so that its classes can say where they come from."""
    stem = f"page_{re.sub(r'[^a-z]', '_', page.lower())}_{block.line}"
    if block.file:
        Path(block.file).write_text(block.text, "utf-8")
        stem = Path(block.file).stem
    module = types.ModuleType(stem)
    vars(module)["__page__"] = page
    sys.modules[stem] = module
    # Empty lines before the block: a traceback shows the line of the page.
    exec(compile("\n" * block.line + block.text, page, "exec"), vars(module))


def run_command(command: str, where: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    assert done.exit_code == 0, f"{where}: {command}\n{done.output}{done.exception!r}"


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """An empty working directory; what a page imports and registers is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(tmp_path))
    # The resume check of a page starts a process of its own, which must find the page's files.
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    modules = set(sys.modules)
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    yield tmp_path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if hasattr(sys.modules[name], "__page__") or file.startswith(str(tmp_path)):
            del sys.modules[name]
    ours = {k: v for k, v in adapters._objects.items() if v.__module__.startswith("tta.adapters.")}
    adapters._objects.clear()
    adapters._objects.update(ours)
    torch.set_num_threads(threads)
    torch.set_rng_state(random)


def test_blocks_are_found():
    text = (
        "# t\n\n```python\nx = 1\n```\n\n```console no-run\n$ tta-bench a\n```\n"
        "```python file=a.py\ny = 2\n```\n"
        "```console\n$ tta-bench run \\\n  -m b # c\nout\n$ ls\n```\n"
    )
    first, second, third, fourth = blocks_of(text)
    assert (first.language, first.text, first.line, first.runs) == ("python", "x = 1\n", 3, True)
    assert not second.runs
    assert third.file == "a.py"
    assert fourth.commands == ["tta-bench run    -m b # c"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page, sandbox):
    name = page.relative_to(ROOT).as_posix()
    for block in blocks_of(page.read_text("utf-8")):
        if not block.runs:
            continue
        if block.language == "python":
            run_python(block, name)
        for command in block.commands if block.language == "console" else ():
            run_command(command, f"{name}:{block.line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_lead_somewhere(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
