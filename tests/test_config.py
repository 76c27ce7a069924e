"""Configs, the registry, and what they say when something is wrong."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
from torch import nn

import tta
from tta import registry as registry_module
from tta.registry import Registry


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr=-1.0 is out of range: it must be above 0"),
        ({"lr": float("nan")}, "out of range"),
        ({"lr": "fast"}, "wrong type: expected float"),
        ({"steps": 0}, "at least 1"),
        ({"steps": True}, "wrong type"),
        ({"steps": 1.5}, "expected int"),
        ({"optimizer": "sdg"}, "one of 'sgd', 'adam', 'adamw'"),
        ({"betas": (0.9, 1.0)}, "below 1"),
        ({"betas": (0.9,)}, "wrong type"),
        ({"learning_rat": 1.0}, "unknown option 'learning_rat'"),
        ({"momentun": 0.5}, "did you mean 'momentum'"),
    ],
)
def test_wrong_options(options: dict, words: str) -> None:
    with pytest.raises(tta.AdapterError) as caught:
        tta.wrap(nn.BatchNorm2d(3), "tent", **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(tta.AdapterError, match="did you mean 'deyo'"):
        tta.wrap(nn.BatchNorm2d(3), "deyoo")
    with pytest.raises(tta.AdapterError, match="did you mean 'tent'"):
        tta.adapter_config("tentt")


def test_list_adapters_by_wildcard() -> None:
    assert "tent" in tta.list_adapters("te*")
    assert tta.list_adapters("nothing*") == []
    assert {"source", "norm", "tent", "deyo"} <= set(tta.list_adapters())


def test_wrapping_twice_and_wrapping_nonsense() -> None:
    adapter = tta.wrap(nn.BatchNorm2d(3), "tent")
    with pytest.raises(tta.AdapterError, match="already wrapped"):
        tta.wrap(adapter, "tent")
    with pytest.raises(tta.AdapterError, match=r"torch\.nn\.Module"):
        tta.wrap("resnet", "tent")  # type: ignore[arg-type]


def test_state_is_declared_once() -> None:
    class Twice(tta.Adapter):
        def setup(self) -> None:
            self.add_state("num_steps", 0)

    with pytest.raises(tta.AdapterError, match="declared twice"):
        Twice(nn.BatchNorm2d(3))


def test_a_config_must_be_a_frozen_dataclass() -> None:
    with pytest.raises(TypeError, match="must be a dataclass"):

        class Loose(tta.Adapter):
            Config = dict


def test_duplicate_names_raise() -> None:
    registry: Registry = Registry("method", "tta.adapters")
    with pytest.raises(tta.AdapterError, match="two methods are called 'tent'"):
        registry.register("tent")(object)  # ours stands in tta/adapters/tent.py
    registry.register("new")(Duplicate)
    with pytest.raises(tta.AdapterError, match="two methods are called 'new'"):
        registry.register("new")(Other)


class Duplicate:
    pass


class Other:
    pass


def test_entry_points_are_found_and_clashes_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str):
        point = EntryPoint(name, f"{Duplicate.__module__}:Duplicate", "tta.adapters")
        monkeypatch.setattr(registry_module, "entry_points", lambda group: [point])
        return Registry("method", "tta.adapters", group="tta.adapters")

    assert "third-party" in fake("third-party").names()
    with pytest.raises(tta.AdapterError, match="rename the entry point"):
        fake("tent").names()


def test_inputs_that_are_not_images() -> None:
    import torch

    adapter = tta.wrap(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "tent")
    for wrong in (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 4, 4), [1, 2]):
        with pytest.raises(tta.AdapterError, match="images must be"):
            adapter(wrong)
