"""Fixtures and the one marker of the suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Tiny tensors: a second thread costs more than it brings, most of all on a busy machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs the reference data where ``TTA_SHARED`` does not point at it."""
    if os.environ.get("TTA_SHARED"):
        return
    needs = [item for item in items if item.get_closest_marker("shared")]
    if needs:
        config.hook.pytest_deselected(items=needs)
        items[:] = [item for item in items if not item.get_closest_marker("shared")]
        config.stash[_DESELECTED] = len(needs)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say in one line what was left out and why."""
    count = config.stash.get(_DESELECTED, 0)
    if count:
        terminalreporter.write_line(
            f"deselected for want of reference data: {count} (TTA_SHARED names no folder); "
            "set it to the folder that holds data/ and traces/ to run them"
        )


_DESELECTED = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference data (``data/``, ``traces/``)."""
    return Path(os.environ["TTA_SHARED"])
