"""Every registered adapter on BatchNorm, GroupNorm and LayerNorm models, in both precisions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import GroupNorm
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

import tta
from tta import checks
from tta.factory import adapters

SIDE = 32
MODELS = {
    "batch-norm": lambda: timm.create_model(
        "test_efficientnet", num_classes=10, drop_path_rate=0.1
    ),
    "group-norm": lambda: ResNet(
        BasicBlock,
        layers=(1, 1, 1, 1),
        channels=(8, 16, 24, 32),
        stem_width=8,
        num_classes=10,
        drop_path_rate=0.1,
        norm_layer=partial(GroupNorm, num_groups=4),
    ),
    "layer-norm": lambda: timm.create_model(
        "test_vit", num_classes=10, drop_path_rate=0.1, img_size=SIDE, depth=4
    ),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@lru_cache
def model(name: str, dtype: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MODELS[name]()
    # Dropout and stochastic depth are live, as a training script leaves them.
    return nn.Sequential(net, nn.Dropout(0.5)).train().to(DTYPES[dtype])


@lru_cache
def batches(dtype: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(5, 3, SIDE, SIDE, generator=generator).to(DTYPES[dtype]) for _ in range(4)]


# What an option can break; the rest of the suite does not depend on the branch that it takes.
OF_EACH_VARIANT = {
    "adapts_if_it_says_so",
    "same_input_same_output",
    "reset_equals_fresh",
    "state_survives_save_and_load",
    "predict_changes_nothing",
    "batch_of_one",
    "bad_rows_do_not_poison",
}


def failures_of(
    method: str, options: Mapping[str, Any], backbone: str, dtype: str, executor, names=None
) -> list[str]:
    """What does not hold of a method under options; ``names`` chooses the checks."""
    cls, failures = adapters.get(method), []
    for check in checks.yield_checks(cls, cls.Config.create(options), executor=executor):
        if names is None or check.name in names:
            try:
                check(model(backbone, dtype), batches(dtype))
            except AssertionError as error:
                failures.append(f"{check.name}: {error}")
    return failures


@lru_cache
def first_model(method: str) -> str:
    return next(name for name in MODELS if checks.runs_on(method, model(name, "float64")))


@pytest.fixture(scope="module")
def executor():
    with checks.other_process() as process:
        yield process


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backbone", MODELS)
@pytest.mark.parametrize("method", tta.list_adapters())
def test_conformance(method: str, backbone: str, dtype: str, executor) -> None:
    net = model(backbone, dtype)
    if not checks.runs_on(method, net):
        # The refusal itself is the behaviour: it names what is missing, before any batch.
        with pytest.raises(tta.AdapterError, match=r"\d+ (bn|gn|ln)"):
            tta.wrap(net, method)
        return
    first = adapters.get(method).check_options[0]
    failures = failures_of(method, first, backbone, dtype, executor)
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("method", tta.list_adapters())
def test_conformance_of_every_branch(method: str, executor) -> None:
    """Further options of each method, on the first model that it runs on."""
    for options in adapters.get(method).check_options[1:]:
        failures = failures_of(
            method, options, first_model(method), "float64", executor, OF_EACH_VARIANT
        )
        assert not failures, f"{options}: " + "\n".join(failures)


def test_a_broken_adapter_is_caught(executor) -> None:
    """The suite can fail: an adapter that forgets its state and draws globally is named."""
    failed = set()
    for check in checks.yield_checks(Forgetful, executor=executor):
        if check.name == "resumes_in_a_new_process":
            continue  # the other process cannot import a test module
        try:
            check(model("batch-norm", "float32"), batches("float32"))
        except AssertionError:
            failed.add(check.name)
    assert {
        "reset_equals_fresh",
        "state_survives_save_and_load",
        "global_random_state_untouched",
        "bad_rows_do_not_poison",
    } <= failed


class Forgetful(tta.Adapter):
    """Keeps an undeclared running offset and adds global noise to it."""

    needs = tta.Needs(gradients=False)

    def setup(self) -> None:
        self.offset = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._report = {"forwards": len(x), "backwards": 0}
        self.offset = self.offset + x.mean() + 1e-3 * torch.rand(())
        return self.model(x).detach() + self.offset
