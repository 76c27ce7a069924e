"""Every wrong command line of ``bad_inputs``: one line, exit status 2, nothing written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bad_inputs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("bad")
    (work := root / "work").mkdir()
    before, cache = Path.cwd(), os.environ.get("TTA_BENCH_CACHE")
    os.environ["TTA_BENCH_CACHE"] = str(root / "cache")
    os.chdir(work)
    bad_inputs.make_folder(work)
    yield work
    os.chdir(before)
    os.environ.pop("TTA_BENCH_CACHE")
    if cache is not None:
        os.environ["TTA_BENCH_CACHE"] = cache


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", bad_inputs.BAD)
def test_one_line_and_nothing_written(command: str, folder: Path) -> None:
    before = bad_inputs.listing(folder)
    status, out, err = bad_inputs.answer(command)
    assert status == 2, out + err
    assert not out
    (line,) = err.splitlines()
    assert line.startswith("tta-bench: error: ")
    assert bad_inputs.BAD[command] in line
    assert bad_inputs.listing(folder) == before


def test_the_table_is_long_and_its_page_has_every_command() -> None:
    page = (ROOT / "docs" / "bad_inputs.md").read_text("utf-8")
    missing = [command for command in bad_inputs.BAD if f"$ tta-bench {command}\n" not in page]
    assert not missing, "write it again: python tests/bad_inputs.py docs/bad_inputs.md"
    assert page.count("$ tta-bench ") == len(bad_inputs.BAD) >= 60
    said = {command.split()[0] for command in bad_inputs.BAD}
    commands = "run list describe data leaderboard sweep tune report compare reproduce results"
    commands += " curves experiment profile pretrain new watch"
    assert set(commands.split()) <= said
