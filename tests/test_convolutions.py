"""The price of a network's convolutions alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import convolutions


def test_the_layers_have_the_shapes_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1))
    found = convolutions.layers(model.eval(), torch.rand(2, 3, 8, 8), "channels-last")
    assert [tuple(part.x.shape) for part in found] == [(2, 3, 8, 8), (2, 4, 6, 6)]
    assert [tuple(part.grad.shape) for part in found] == [(2, 4, 6, 6), (2, 5, 6, 6)]
    assert all(part.x.is_contiguous(memory_format=torch.channels_last) for part in found)
    assert not any(part._forward_hooks for part in (model[0], found[0].module))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "made.json"
    assert convolutions.main(["--batch-size", "8", "--rounds", "3", "--json", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    made = json.loads(file.read_text("utf-8"))
    assert set(made) == {"contiguous", "channels-last"}
    for values in made.values():
        assert len(values) == 4
        assert min(values.values()) > 0


def test_an_unknown_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert convolutions.main(["--backbone", "resnet-of-nobody"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convolutions: error: ")
