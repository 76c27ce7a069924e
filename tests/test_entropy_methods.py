"""Entropy methods: the published check values, the steps by hand, and dense heads."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tta
from tta import crowd, losses, optim, source

ROOT = Path(__file__).parent
Z = torch.tensor([[2, 0, -1], [0.5, 0.4, 0.3], [-1, 3, 0], [0, 0, 4]], dtype=torch.float64)
Z_NEXT = torch.tensor(
    [[1, 0.5, -0.5], [0.2, 0.1, 0.9], [0, 2, -1], [-1, 1, 2]], dtype=torch.float64
)
STILL = 1e-12  # a learning rate that leaves the scores of the next batch as they are


class Table(nn.Module):
    """Call ``n`` returns the ``n``-th table of logits, scaled and shifted by a norm layer."""

    def __init__(self, *tables: torch.Tensor) -> None:
        super().__init__()
        self.tables = tables
        self.calls = 0
        self.norm = nn.LayerNorm(1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.tables[self.calls % len(self.tables)]
        self.calls += 1
        return table[: len(x)] * self.norm.weight + self.norm.bias


X = torch.zeros(4, 3, 2, 2, dtype=torch.float64)


class Segmenter(nn.Module):
    """Scores ``(B, 4, H, W)`` of each pixel, or of all pixels as rows ``(B * H * W, 4)``."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.head = nn.Conv2d(6, 4, 1)
        self.double()
        self.flat = flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.norm(self.stem(x)).relu()) * 3
        return pixels(logits) if self.flat else logits


def pixels(logits: torch.Tensor) -> torch.Tensor:
    return logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])


def images(batches: int = 1, size: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(size, 3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(batches)
    ]


def affine(adapter: tta.Adapter) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in optim.params_of(adapter.optimizer)])


# Losses -----------------------------------------------------------------------------------------


def test_opinion_entropy_values_and_tangential_gradient() -> None:
    z = Z[:1].clone().requires_grad_()
    assert losses.opinion_entropy(z, 1000).item() == pytest.approx(0.0544009, abs=1e-7)
    value = losses.opinion_entropy(z)
    assert value.item() == pytest.approx(0.9584331, abs=1e-7)
    value.backward()
    assert z.grad.norm() > 0.1
    assert (z.grad * z).sum().item() == pytest.approx(0, abs=1e-12)


def test_opinion_entropy_is_finite_at_the_ends() -> None:
    z = torch.tensor([[0.0, 0, 0], [1e4, 0, 0], [-1e4, -1e4, -1e4]]).requires_grad_()
    value = losses.opinion_entropy(z)
    value.sum().backward()
    assert value.isfinite().all()
    assert z.grad.isfinite().all()
    # No evidence at all: three beliefs of 1/6, an uncertainty of 1/2.
    assert value[0].item() == pytest.approx(0.5 * math.log(6) + 0.5 * math.log(2), abs=1e-5)


def test_generalized_cross_entropy_has_the_gradient_of_cross_entropy_times_p_to_the_q() -> None:
    z = Z.clone().requires_grad_()
    labels = Z.argmax(1)
    p = Z.softmax(1).gather(1, labels[:, None])
    value = losses.generalized_cross_entropy(z, labels, 0.8)
    torch.testing.assert_close(value.detach(), (1 - p[:, 0] ** 0.8) / 0.8)
    value.sum().backward()
    expected = (Z.softmax(1) - F.one_hot(labels, 3)) * p**0.8
    torch.testing.assert_close(z.grad, expected)


def test_marginal_entropy() -> None:
    mean = Z.softmax(1).mean(0)
    expected = -(mean * mean.log()).sum().item()
    assert losses.marginal_entropy(Z).item() == pytest.approx(1.0974240, abs=1e-7)
    assert losses.marginal_entropy(Z).item() == pytest.approx(expected, abs=1e-12)
    certain = torch.tensor([[1e3, 0.0], [1e3, 0.0]]).requires_grad_()
    losses.marginal_entropy(certain).backward()
    assert certain.grad.isfinite().all()


# ETA, EATA, RDumb --------------------------------------------------------------------------------

ETA = {"entropy_margin": 0.8, "lr": STILL}


def test_eta_selection_loss_and_mean_prediction() -> None:
    adapter = tta.wrap(Table(Z, Z_NEXT), "eta", redundancy_margin=0.9, **ETA)
    adapter(X)
    assert adapter.report["loss"] == pytest.approx(0.5357289, abs=1e-7)
    assert adapter.report["selected_fraction"] == 0.75
    assert adapter.report["backwards"] == 3
    mean = [0.2928703, 0.3560344, 0.3510953]
    assert adapter.mean_probability.tolist() == pytest.approx(mean, abs=1e-7)
    adapter(X)
    assert adapter.report["loss"] == pytest.approx(0.7946829, abs=1e-7)
    assert adapter.report["backwards"] == 2
    mean = [0.2710490, 0.3755955, 0.3533555]
    assert adapter.mean_probability.tolist() == pytest.approx(mean, abs=1e-7)


def test_eta_leaves_out_what_is_redundant() -> None:
    adapter = tta.wrap(Table(Z, Z_NEXT), "eta", redundancy_margin=0.75, **ETA)
    adapter(X)
    adapter(X)
    assert adapter.report["selected_fraction"] == 0.25


@pytest.mark.parametrize("method", ["eta", "ostta"])
def test_an_empty_selection_changes_nothing(method: str) -> None:
    """OSTTA: the source is sure of another class for every image."""
    tables = (Z,) if method == "eta" else (Z.roll(1, dims=1) * 9, Z)
    options = {"entropy_margin": 0.0} if method == "eta" else {}
    adapter = tta.wrap(Table(*tables), method, lr=0.1, **options)
    before = affine(adapter)
    assert torch.equal(adapter(X), Z)
    assert adapter.report["selected_fraction"] == 0
    assert adapter.report["backwards"] == 0
    assert torch.equal(affine(adapter), before)
    assert not adapter.optimizer.state


@pytest.mark.parametrize("reset_mean", [True, False])
def test_what_reset_does_with_the_mean_prediction(reset_mean: bool) -> None:
    adapter = tta.wrap(Table(Z), "eta", reset_mean=reset_mean, **ETA)
    adapter(X)
    seen = adapter.mean_probability.clone()
    adapter.reset()
    kept = adapter.mean_probability
    assert kept is None if reset_mean else torch.equal(kept, seen)


def test_rdumb_starts_again_and_goes_on_counting() -> None:
    options = {"lr": 0.1, "entropy_margin": 1.0, "redundancy_margin": 2.0}
    adapter = tta.wrap(Segmenter(), "rdumb", reset_every=2, **options)
    batches = images(5)
    outputs = [adapter(x) for x in batches]
    resets = []
    for start in (0, 2, 4):
        fresh = tta.wrap(Segmenter(), "eta", **options)
        for x, got in zip(batches[start : start + 2], outputs[start : start + 2], strict=True):
            assert torch.equal(fresh(x), got)
            resets.append(fresh.num_steps)
    assert resets == [1, 2, 1, 2, 1]
    assert adapter.num_steps == 5
    assert adapter.report["recovered"] == 1


def test_fisher_is_the_mean_over_batches_of_the_squared_batch_gradient() -> None:
    net = Segmenter(flat=True)
    params = [net.norm.weight, net.norm.bias, nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    batches = images(3)
    got = source.fisher(net, batches, params, losses.pseudo_label_loss)
    expected = torch.zeros(6, dtype=torch.float64)
    for x in batches:
        logits = net(x)
        loss = -logits.log_softmax(1).gather(1, logits.argmax(1)[:, None]).mean()
        expected += torch.autograd.grad(loss, net.norm.weight)[0] ** 2 / 3
    torch.testing.assert_close(got[0], expected)
    assert torch.equal(got[2], torch.zeros(2, dtype=torch.float64))  # not a part of the net
    assert all(p.grad is None for p in params)


def test_fisher_refuses_what_is_not_finite_or_empty() -> None:
    net = Segmenter()
    params = [net.norm.weight]
    with pytest.raises(tta.AdapterError, match="not finite"):
        source.fisher(net, [images()[0] * math.nan], params, losses.pseudo_label_loss)
    with pytest.raises(tta.AdapterError, match="no batch"):
        source.fisher(net, [], params, losses.pseudo_label_loss)


def test_eata_pulls_to_the_source_with_the_fisher_information() -> None:
    """Two plain SGD steps by hand: no pull in the first, its gradient 2 beta F d in the second."""
    options = {"lr": 0.2, "momentum": 0.0, "entropy_margin": 1.0, "redundancy_margin": 2.0}
    beta = 50.0
    first, second, clean = images(3)
    adapter = tta.wrap(Segmenter(), "eata", fisher_weight=beta, **options)
    with pytest.raises(tta.AdapterError, match="source data"):
        adapter(first)
    adapter.fit_source([clean])
    fisher = torch.cat([f.flatten() for f in adapter.fisher])
    assert fisher.max() > 1e-6
    plain = tta.wrap(Segmenter(), "eta", **options)
    start = affine(plain)
    adapter(first)
    plain(first)
    assert torch.equal(affine(adapter), affine(plain))
    moved = affine(plain) - start
    adapter(second)
    plain(second)
    pull = 0.2 * 2 * beta * fisher * moved
    assert pull.abs().max() > 1e-6
    torch.testing.assert_close(affine(adapter), affine(plain) - pull, rtol=0, atol=1e-13)
    state = adapter.state_dict()
    other = tta.wrap(Segmenter(), "eata", fisher_weight=beta, **options)
    other.load_state_dict(state)
    assert torch.equal(other(first), adapter(first))


def test_eata_takes_the_fisher_information_of_test_images_at_the_source_weights() -> None:
    options = {"entropy_margin": 1.0, "redundancy_margin": 2.0, "lr": 0.2}
    adapter = tta.wrap(Segmenter(), "eata", fisher_from="test", fisher_images=5, **options)
    assert not adapter.needs.source_data
    batches = images(3)
    for x in batches:
        adapter(x)
    assert adapter.report["forwards"] == 3  # two batches of three images were enough
    reference = tta.wrap(Segmenter(), "eata", **options)
    reference.fit_source(batches[:2])
    for got, expected in zip(adapter.fisher, reference.fisher, strict=True):
        torch.testing.assert_close(got, expected)
    adapter.reset()
    assert adapter.fisher == []
    adapter(batches[0])
    assert adapter.report["forwards"] == adapter.report["backwards"] == 6


def test_eata_without_pull_is_eta() -> None:
    options = {"entropy_margin": 1.0, "redundancy_margin": 2.0, "lr": 0.2}
    eata = tta.wrap(Segmenter(), "eata", fisher_weight=0.0, **options)
    eta = tta.wrap(Segmenter(), "eta", **options)
    assert not eata.needs.source_data
    assert tta.adapter_config("eata")().fisher_weight == 2000
    for x in images(3):
        assert torch.equal(eata(x), eta(x))


# SAR --------------------------------------------------------------------------------------------


def test_sharpness_aware_step_by_hand() -> None:
    """Loss a w^2 / 2 with w = (3, 4) and a = (1, 2): gradient (3, 8), then a (w + rho g / |g|)."""
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    seen = []

    def loss() -> torch.Tensor:
        seen.append(w.detach().clone())
        return (a * w**2).sum() / 2

    assert optim.sharpness_aware_step(optimizer, loss(), loss, rho=0.5)
    raised = [3 + 0.5 * 3 / math.sqrt(73), 4 + 0.5 * 8 / math.sqrt(73)]
    assert seen[1].tolist() == pytest.approx(raised, abs=1e-12)
    torch.testing.assert_close(w.detach(), seen[0] - 0.1 * a * seen[1], rtol=0, atol=1e-15)
    assert w.grad is None


def test_sharpness_aware_step_gives_the_weights_back() -> None:
    w = nn.Parameter(torch.tensor([0.1, 0.7]))
    optimizer = torch.optim.SGD([w], lr=0.1)
    before = w.detach().clone()
    assert not optim.sharpness_aware_step(optimizer, w.sum(), lambda: (w * math.nan).sum(), 0.3)
    assert torch.equal(w, before)
    assert not optim.sharpness_aware_step(optimizer, (w * math.inf).sum(), lambda: w.sum(), 0.3)
    assert torch.equal(w, before)

    def fail() -> torch.Tensor:
        raise RuntimeError("no second forward")

    with pytest.raises(RuntimeError, match="second forward"):
        optim.sharpness_aware_step(optimizer, w.sum(), fail, 0.3)
    assert torch.equal(w, before)


@pytest.mark.parametrize("known", ["first", "second", "both"])
def test_a_gradient_known_to_be_zero_is_the_one_that_went_back(known: str) -> None:
    weights = []
    for left_out in (False, True):
        w = nn.Parameter(torch.tensor([0.1, 0.7]))
        optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01)

        def loss(zero: bool, w=w, left_out=left_out) -> torch.Tensor | None:
            return None if zero and left_out else (w**2 * (0.0 if zero else 1.0)).sum()

        for empty in (False, True, True, False):
            first, second = empty and known != "second", empty and known != "first"
            taken = optim.sharpness_aware_step(
                optimizer, loss(first), lambda loss=loss, second=second: loss(second), rho=0.3
            )
            assert taken
        weights.append(w.detach())
    assert torch.equal(*weights)


def test_sar_sends_nothing_back_for_nothing(monkeypatch) -> None:
    sure = Z * 3
    adapter = tta.wrap(Table(sure, sure), "sar", lr=0.1, entropy_margin=1e-9)
    monkeypatch.setattr(torch.Tensor, "backward", None)
    adapter(X)
    assert adapter.report["selected_fraction"] == adapter.report["update_refused"] == 0


def test_sar_with_an_empty_selection_moves_by_momentum_alone() -> None:
    sure, flat = Z * 3, torch.zeros_like(Z)
    adapter = tta.wrap(Table(sure, sure, flat, flat), "sar", lr=0.1, recovery_threshold=0.0)
    adapter(X)
    assert adapter.report["selected_fraction"] > 0
    after_one, buffers = affine(adapter), list(adapter.optimizer.state.values())
    velocity = torch.cat([b["momentum_buffer"].flatten().clone() for b in buffers])
    assert velocity.abs().max() > 0
    average = adapter.loss_average
    adapter(X)
    assert adapter.report["selected_fraction"] == 0
    torch.testing.assert_close(affine(adapter), after_one - 0.1 * 0.9 * velocity)
    assert adapter.loss_average == average


def test_sar_second_selection_is_within_the_first() -> None:
    """Rows 0, 2, 3 are reliable at first, 2 and 3 at the raised weights, 1 only there."""
    above = torch.stack([Z[1], Z[0], Z[2], Z[3]])
    adapter = tta.wrap(Table(Z, above), "sar", entropy_margin=0.8, lr=STILL, rho=0.0)
    adapter(X)
    expected = losses.entropy(Z)[2:].mean().item()
    assert adapter.report["loss"] == pytest.approx(expected, abs=1e-9)
    assert adapter.report["selected_fraction"] == 0.5
    assert adapter.report["backwards"] == 3 + 2
    assert adapter.report["forwards"] == 8


@pytest.mark.parametrize("recovery", ["official", "average", "full"])
def test_what_a_recovery_of_sar_restores(recovery: str) -> None:
    adapter = tta.wrap(
        Table(Z * 2), "sar", lr=0.1, entropy_margin=0.9, recovery_threshold=9.0, recovery=recovery
    )
    start = affine(adapter)
    adapter(X)
    assert adapter.report["recovered"] == 1
    assert torch.equal(affine(adapter), start)
    assert (adapter.loss_average is None) is (recovery != "official")
    assert bool(adapter.optimizer.state) is (recovery != "full")
    assert adapter.num_steps == 1


def test_sar_follows_the_loss() -> None:
    adapter = tta.wrap(Table(Z, Z, Z_NEXT, Z_NEXT), "sar", entropy_margin=1.0, lr=STILL, rho=0.0)
    adapter(X)
    adapter(X)
    first, second = (losses.entropy(z).mean().item() for z in (Z, Z_NEXT))
    assert adapter.loss_average == pytest.approx(0.9 * first + 0.1 * second, abs=1e-9)


# COME and OSTTA ---------------------------------------------------------------------------------


def test_come_minimises_the_opinion() -> None:
    adapter = tta.wrap(Table(Z), "come", lr=STILL, opinion_classes=5)
    adapter(X)
    opinion = losses.opinion_entropy(Z, 5)
    assert adapter.report["loss"] == pytest.approx(opinion.mean().item(), abs=1e-9)
    assert adapter.report["uncertainty"] == adapter.report["loss"]


def test_come_over_eata_selects_by_the_opinion_and_remembers_the_softmax() -> None:
    opinion = losses.opinion_entropy(Z)
    limit = opinion.median().item() + 1e-6  # two of the four
    margin = limit / math.log(3)
    options = {"host": "eata", "fisher_weight": 0.0, "entropy_margin": margin, "lr": STILL}
    adapter = tta.wrap(Table(Z), "come", **options)
    adapter(X)
    chosen = opinion < limit
    loss = ((limit - opinion).exp() * opinion)[chosen].mean().item()
    assert adapter.report["loss"] == pytest.approx(loss, abs=1e-9)
    torch.testing.assert_close(adapter.mean_probability, Z.softmax(1)[chosen].mean(0))


def test_ostta_filter_and_loss() -> None:
    chosen = crowd.not_less_confident(Z, Z_NEXT)
    assert chosen.tolist() == [True, False, True, True]
    assert crowd.not_less_confident(Z, Z).all()
    assert not crowd.not_less_confident(Z * math.nan, Z).any()
    adapter = tta.wrap(Table(Z_NEXT, Z), "ostta")  # the source model is asked first
    assert torch.equal(adapter(X), Z)
    assert adapter.report["loss"] == pytest.approx(-0.2234109, abs=1e-7)
    assert adapter.report["selected_fraction"] == 0.75
    assert adapter.report["forwards"] == 8


@pytest.mark.parametrize("anchor", ["batch", "running"])
def test_the_source_model_of_ostta_stays(anchor: str) -> None:
    adapter = tta.wrap(Segmenter(), "ostta", lr=0.1, anchor=anchor)
    (x,) = images()
    frozen = Segmenter().eval()
    frozen.norm.train(anchor == "batch")
    expected = frozen(x).detach()
    for _ in range(3):
        torch.testing.assert_close(adapter.source_logits(x), expected)
        adapter(x)
    assert not torch.equal(adapter.predict(x), expected)


@pytest.mark.parametrize("host", ["tent", "eata", "sar"])
def test_the_first_step_of_ostta_without_marginal_term_is_that_of_its_host(host: str) -> None:
    """All samples tie with the source model, bit for bit, and pass; later some do not."""
    rule = {"optimizer": "sgd", "lr": 0.5}
    options = {
        "tent": {},
        "eata": {"entropy_margin": 0.9, "redundancy_margin": 2.0, "fisher_weight": 0.0},
        "sar": {"entropy_margin": 0.9, "skip_top": "none"},
    }[host]
    ours = tta.wrap(Segmenter(), "ostta", host=host, marginal_weight=0.0, **rule, **options)
    theirs = tta.wrap(Segmenter(), host, **rule, **options)
    batches = images(4)
    for x in batches[:2]:
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-14)
        if x is batches[0]:
            torch.testing.assert_close(affine(ours), affine(theirs), rtol=0, atol=1e-14)
    for x in batches[2:]:
        ours(x)
        theirs(x)
    assert not torch.allclose(affine(ours), affine(theirs), atol=1e-9)


# Dense heads ------------------------------------------------------------------------------------


def test_tent_on_a_segmentation_head_by_hand() -> None:
    """Logits and update are those of the mean entropy over the flattened pixels."""
    (x,) = images()
    adapter = tta.wrap(Segmenter(), "tent", optimizer="sgd", lr=0.1)
    net = Segmenter(flat=True)
    net.stem.requires_grad_(False)
    rows = net(x)  # BatchNorm in train mode: the statistics of the batch
    p = rows.softmax(1)
    loss = -(p * p.log()).sum(1).mean()
    loss.backward()
    torch.testing.assert_close(pixels(adapter(x)), rows.detach(), rtol=0, atol=1e-13)
    assert adapter.report["loss"] == pytest.approx(loss.item(), abs=1e-12)
    for mine, by_hand in zip(
        optim.params_of(adapter.optimizer), (net.norm.weight, net.norm.bias), strict=True
    ):
        assert by_hand.grad.abs().max() > 1e-4
        expected = (by_hand - 0.1 * by_hand.grad).detach()
        torch.testing.assert_close(mine.detach(), expected, rtol=0, atol=1e-13)
    with torch.no_grad():
        net.norm.weight -= 0.1 * net.norm.weight.grad
        net.norm.bias -= 0.1 * net.norm.bias.grad
        torch.testing.assert_close(pixels(adapter(x)), net(x), rtol=0, atol=1e-13)


SELECTING = {"entropy_margin": 0.8, "lr": 0.1, "optimizer": "sgd"}
DENSE = {
    "tent": {"lr": 0.1, "optimizer": "sgd"},
    "rpl": {"lr": 0.1},
    "eta": {"redundancy_margin": 0.7, **SELECTING},
    "eata": {"redundancy_margin": 0.7, "fisher_from": "test", **SELECTING},
    "rdumb": {"redundancy_margin": 0.7, "reset_every": 2, **SELECTING},
    "sar": {"skip_top": "none", **SELECTING},
    "come": {"host": "eata", "fisher_from": "test", **SELECTING, "entropy_margin": 1.0},
    "ostta": {"host": "sar", **SELECTING},
}


@pytest.mark.parametrize("method", DENSE)
def test_dense_logits_are_treated_as_their_pixels(method: str) -> None:
    dense = tta.wrap(Segmenter(), method, **DENSE[method])
    flat = tta.wrap(Segmenter(flat=True), method, **DENSE[method])
    start, fractions = affine(dense), []
    for x in images(3):
        torch.testing.assert_close(pixels(dense(x)), flat(x), rtol=0, atol=1e-10)
        torch.testing.assert_close(affine(dense), affine(flat), rtol=0, atol=1e-10)
        fractions.append(dense.report["selected_fraction"])
        assert fractions[-1] == flat.report["selected_fraction"]
        assert dense.report["backwards"] <= 2 * len(x)
    assert not torch.equal(affine(dense), start)
    assert method in {"tent", "rpl"} or any(0 < share < 1 for share in fractions)


# Reference data ---------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["eata", "eata_official", "come_eata"])
def test_fisher_of_the_stated_images_is_the_stored_one(name: str, shared: Path) -> None:
    sys.path.insert(0, str(ROOT / "parity"))
    try:
        import mapping
        import run_trace
    finally:
        sys.path.pop(0)
    arrays = np.load(shared / "traces" / f"{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    method, options = mapping.adapter_of(meta)
    weights = shared / "data" / "weights" / meta["weights"]
    adapter = tta.wrap(run_trace.build_model(meta, weights), method, **options)
    adapter.fit_source(run_trace.source_batches(meta, shared / "data"))
    sums = [float(f.sum()) for f in adapter.fisher]
    np.testing.assert_allclose(sums, arrays["f64/fisher_sums"], rtol=1e-10)
    for key, got in zip(arrays["fisher_names"], adapter.fisher, strict=True):
        if f"f64/fisher/{key}" in arrays:
            np.testing.assert_allclose(got.numpy(), arrays[f"f64/fisher/{key}"], rtol=1e-10)
