"""FOA and its search: two batches by hand, what it refuses, and that the search converges."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

import tta
from tta import evolution
from tta.architectures import CifarResNet
from tta.losses import entropy


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def vit() -> nn.Module:
    net = timm.create_model("test_vit", num_classes=5, img_size=32, depth=3).double().eval()
    with torch.no_grad():
        net.head.weight.mul_(20)
    return net


def by_hand(net: nn.Module, x: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
    """Class tokens ``(B, 3 * 64)``: every block's through the norm that reads it next."""
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(x)))
    if prompts is not None:
        rows = prompts[None].expand(len(x), -1, -1)
        tokens = torch.cat([tokens[:, :1], rows, tokens[:, 1:]], 1)
    out = []
    following = [net.blocks[1].norm1, net.blocks[2].norm1, net.norm]
    for block, norm in zip(net.blocks, following, strict=True):
        tokens = block(tokens)
        out.append(norm(tokens)[:, 0])
    return torch.cat(out, 1).detach()


def test_foa_two_batches_by_hand() -> None:
    net = vit()
    source = torch.rand(7, 3, 32, 32).double()
    batches = [torch.rand(4, 3, 32, 32).double() for _ in range(2)]
    adapter = tta.wrap(net, "foa", popsize=4, fitness_weight=0.3, images_per_forward=8)
    adapter.fit_source([source[:3], source[3:]])
    clean = by_hand(net, source, None)
    torch.testing.assert_close(adapter.source_mean, clean.mean(0))
    torch.testing.assert_close(adapter.source_std, clean.std(0))

    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    assert adapter.best.abs().max() < bound
    assert adapter.best.abs().max() > 0.9 * bound
    history = None
    for x in batches:
        asked = evolution.ask(adapter.search, 4, adapter.generator("candidates"))
        candidates = torch.cat([asked, adapter.best[None]]).view(5, 3, 64)
        fitness, logits, means = [], [], []
        for prompts in candidates:
            features = by_hand(net, x, prompts)
            gap = ((features.std(0) - clean.std(0)) ** 2).sum()
            gap = gap + ((features.mean(0) - clean.mean(0)) ** 2).sum()
            last = features[:, -64:]
            loss = 0.3 * gap * 4 / 64 + entropy(net.head(last)).sum()
            shift = 0 if history is None else clean.mean(0)[-64:] - history
            fitness.append(loss.item())
            logits.append(net.head(last + shift).detach())
            means.append(last.mean(0))
        best = fitness.index(min(fitness))
        torch.testing.assert_close(adapter(x), logits[best], rtol=1e-9, atol=1e-9)
        assert adapter.report["loss"] == pytest.approx(min(fitness), rel=1e-10)
        assert adapter.report["forwards"] == 20
        torch.testing.assert_close(adapter.best, candidates[best].flatten())
        mean = torch.stack(means).mean(0)
        history = mean if history is None else 0.9 * history + 0.1 * mean
        torch.testing.assert_close(adapter.test_mean, history)
    assert adapter.search["generation"] == 2


def test_foa_is_the_same_however_candidates_share_a_forward() -> None:
    net, x = vit(), torch.rand(3, 3, 32, 32).double()
    results = []
    for together in (1, 7, 64):
        adapter = tta.wrap(net, "foa", popsize=4, images_per_forward=together)
        adapter.fit_source([x])
        results.append(adapter(x))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_foa_learns_nothing_where_no_candidate_is_finite() -> None:
    adapter = tta.wrap(vit(), "foa", popsize=4)
    adapter.fit_source([torch.rand(3, 3, 32, 32).double()])
    before = adapter.best.clone()
    adapter(torch.full((2, 3, 32, 32), 1e300, dtype=torch.float64))
    assert torch.equal(adapter.best, before)
    assert adapter.search["generation"] == 0


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: CifarResNet(8), "CifarResNet holds none, it has 7 bn"),
        (
            lambda: timm.create_model("test_vit", global_pool="avg"),
            "this one has global_pool='avg'",
        ),
        (
            lambda: timm.create_model("test_vit", class_token=False, global_pool=""),
            "no class token",
        ),
    ],
)
def test_foa_refuses_other_models(build, said: str) -> None:
    with pytest.raises(tta.AdapterError, match=said):
        tta.wrap(build(), "foa")


def test_foa_needs_two_source_images() -> None:
    with pytest.raises(tta.AdapterError, match="two images or more"):
        tta.wrap(vit(), "foa").fit_source([torch.rand(1, 3, 32, 32).double()])


@pytest.mark.parametrize("outside", [False, True])
def test_the_search_minimises_a_badly_scaled_bowl(outside: bool) -> None:
    """Condition 1e4 in 10 numbers: the covariance must be learnt; outside help does no harm."""
    state = evolution.start(10, 1.0)
    scales = 10 ** (4 * torch.arange(10, dtype=torch.float64) / 9)
    best = torch.full((10,), 30.0, dtype=torch.float64)
    for step in range(250):
        candidates = evolution.ask(state, 12, torch.Generator().manual_seed(step))
        candidates = torch.cat([candidates, best[None]]) if outside else candidates
        losses = ((candidates - 1).square() * scales).sum(1)
        evolution.tell(state, candidates, losses, 12)
        best = candidates[losses.argmin()]
    torch.testing.assert_close(state["mean"], torch.ones(10).double(), rtol=0, atol=1e-4)


def test_the_rates_are_those_of_the_tutorial() -> None:
    """Popsize 27 in 192 numbers; first weights and masses as pycma 4.5.0 computes them."""
    rate = evolution.rates(192, 27)
    assert rate.parents == 13
    assert rate.mass == pytest.approx(7.824762623358721, rel=1e-12)
    assert rate.weights[:3].tolist() == pytest.approx([0.22449, 0.16553, 0.13104], abs=1e-5)
    assert rate.weights[-1] == pytest.approx(-0.15092, abs=1e-5)
    assert rate.path == pytest.approx(0.020607521914564317, rel=1e-12)
    assert rate.rank_one == pytest.approx(5.351497777732245e-05, rel=1e-12)
    assert rate.rank_mu == pytest.approx(0.0003295394167042633, rel=1e-12)


def test_a_solution_from_far_away_is_pulled_in() -> None:
    state = evolution.start(4, 1.0)
    candidates = evolution.ask(state, 4, torch.Generator().manual_seed(0))
    far = torch.full((1, 4), 1e6, dtype=torch.float64)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    evolution.tell(state, torch.cat([candidates, far]), losses, 4)
    assert state["mean"].norm() < math.sqrt(4) + 2 * 4 / 6
    assert state["mean"].norm() > 1
