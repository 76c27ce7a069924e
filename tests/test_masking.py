"""Logits within a part of the classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tta
from tta.masking import Masked


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 6))


def test_masked_logits_are_those_of_the_classes() -> None:
    model = net()
    x = torch.rand(3, 3, 4, 4)
    assert torch.equal(Masked(model, (5, 0, 2), 6)(x), model(x)[:, [5, 0, 2]])


def test_an_adapter_around_a_mask_counts_its_classes() -> None:
    """Entropy is over the kept classes; the mask is no part of the weights."""
    model = net()
    adapter = tta.wrap(Masked(model, (1, 3), 6), "tent")
    x = torch.rand(4, 3, 4, 4)
    assert adapter(x).shape == (4, 2)
    assert adapter.report["entropy"] <= torch.tensor(2.0).log() + 1e-6
    assert "model.class_ids" not in adapter.state_dict()


@pytest.mark.parametrize("ids", [(), (0, 0), (0, 6), (-1,)])
def test_wrong_masks(ids: tuple[int, ...]) -> None:
    with pytest.raises(tta.BackboneError, match="distinct classes below 6"):
        Masked(net(), ids, 6)
