"""CoTTA, PETAL and MEMO: what no trace covers, against numbers worked out by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tta
from tta import ema, execution, losses, mean_teacher, norms, posterior, views
from tta.adapters.memo import marginal_entropy

EXACT = 1e-12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4, side: int = 8, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(seed), dtype=torch.float64)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 5),
        )
        nn.init.uniform_(net[1].weight, 0.5, 1.5)
    return net.double()


def linear(weight: list[list[float]]) -> nn.Module:
    """Logits that are linear in the mean of each channel."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(weight)))
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor(weight))
        net[2].bias.zero_()
    return net.double()


# Losses -----------------------------------------------------------------------------------------


def test_cross_entropies_by_hand():
    target = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)  # 3/4, 1/4
    logits = torch.tensor([[0.0, 0.0]], dtype=torch.float64)  # 1/2, 1/2
    forth = math.log(2)
    back = -0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)
    assert losses.cross_entropy(target, logits).tolist() == pytest.approx([forth], abs=EXACT)
    assert losses.cross_entropy(logits, target).tolist() == pytest.approx([back], abs=EXACT)
    both = losses.symmetric_cross_entropy(logits, target, 0.3)
    assert both.tolist() == pytest.approx([0.7 * forth + 0.3 * back], abs=EXACT)
    dense = target.view(1, 2, 1, 1).expand(2, 2, 4, 3)
    assert losses.cross_entropy(dense, dense).shape == (2, 4, 3)


# Averages and restoration -----------------------------------------------------------------------


def test_update_by_hand_and_equal_stays_equal():
    teacher = [torch.tensor([1.0, 2.0]), torch.tensor([[0.1]])]
    ema.update(teacher, [torch.tensor([3.0, -2.0]), torch.tensor([[0.1]])], 0.9)
    assert teacher[0].tolist() == pytest.approx([1.2, 1.6], abs=1e-6)
    assert torch.equal(teacher[1], torch.tensor([[0.1]]))  # bit for bit


def test_frozen_copy_is_independent():
    net = network()
    twin = ema.frozen_copy(net)
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in net.parameters())
    net[1].running_mean.add_(1)
    assert not torch.equal(net[1].running_mean, twin[1].running_mean)


@pytest.mark.parametrize("probability", [0.003, 0.2, 0.9])
def test_restoration_takes_its_share_and_nothing_else(probability):
    params = [torch.ones(300, 200), torch.ones(40_000)]
    anchors = [torch.full_like(p, 0.3) for p in params]
    ema.restore(params, anchors, probability, seeded())
    flat = torch.cat([p.flatten() for p in params])
    assert set(flat.unique().tolist()) == {1.0, params[0].new_tensor(0.3).item()}
    deviation = math.sqrt(probability * (1 - probability) / len(flat))
    share = (flat != 1).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * deviation)
    halves = [(p != 1).double().mean().item() for p in params]
    assert halves == pytest.approx([probability] * 2, abs=6 * deviation)


def test_restoration_is_that_of_its_generator():
    def restored(seed: int, probability: float = 0.05) -> Tensor:
        params = [torch.ones(500), torch.ones(30, 10)]
        ema.restore(params, [torch.zeros_like(p) for p in params], probability, seeded(seed))
        return torch.cat([p.flatten() for p in params])

    assert torch.equal(restored(0), restored(0))
    assert not torch.equal(restored(0), restored(1))
    assert restored(0, 0.0).eq(1).all()
    assert restored(0, 1.0).eq(0).all()


def test_chosen_elements_are_independent_draws():
    """Neighbours are chosen together as often as the product of their chances says."""
    chosen = torch.zeros(200_000)
    chosen[ema.chosen_elements(len(chosen), 0.3, seeded())] = 1
    pairs = (chosen[1:] * chosen[:-1]).mean().item()
    assert pairs == pytest.approx(0.09, abs=0.004)


# Views ------------------------------------------------------------------------------------------


def test_views_in_one_forward_keep_their_own_statistics():
    net = network().eval()
    norms.use_batch_statistics(net)
    kinds = [batch(4, seed=i) * (i + 1) / 5 for i in range(5)]
    with torch.no_grad():
        wanted = torch.stack([net(x) for x in kinds]).mean(0)
        joint = net(torch.cat(kinds)).view(5, 4, -1).mean(0)
    layers = views.batch_layers(net)
    assert len(layers) == 1
    for images in (1, 8, 1000):
        got = views.mean_logits(net, layers, kinds.__getitem__, 5, images)
        assert (got - wanted).abs().max() < EXACT
    assert (joint - wanted).abs().max() > 1e-3  # the test would see shared statistics
    assert net[1].running_mean is not None  # the layer has its own tensors back
    assert torch.equal(net[1].running_var, torch.ones_like(net[1].running_var))


@pytest.mark.parametrize(
    ("layout", "images", "forwards"),
    [("contiguous", 4, 1), ("channels-last", 4, 6), ("channels-last", 1, 1)],
)
def test_views_in_channels_last_go_one_by_one(layout, images, forwards):
    net = network().eval()
    execution.lay_out(net, layout)
    adapter = tta.wrap(net, "cotta", num_views=6, confidence_threshold=1.0)
    sizes = []
    adapter.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    adapter(batch(images))
    # Between the source model and the student, the views of the teacher.
    assert sizes[1:-1] == [6 * images // forwards] * forwards


def test_views_of_one_value_a_channel_use_the_running_statistics():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)).double().eval()
    net[2].running_mean.fill_(0.5)
    norms.use_batch_statistics(net)
    kinds = [batch(1, side=2, seed=i) for i in range(3)]
    with torch.no_grad():
        wanted = torch.stack([net(x) for x in kinds]).mean(0)
    got = views.mean_logits(net, views.batch_layers(net), kinds.__getitem__, 3, 100)
    assert (got - wanted).abs().max() < EXACT


# CoTTA ------------------------------------------------------------------------------------------


def test_cotta_step_by_hand():
    """One image, a linear student, plain SGD: gradient, average and answer in closed form."""
    weight = [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]
    adapter = tta.wrap(
        linear(weight),
        "cotta",
        optimizer="sgd",
        momentum=0.0,
        lr=0.5,
        teacher_decay=0.75,
        restore_probability=0.0,
        confidence_threshold=1.0,
        num_views=2,
    )
    adapter.augment = lambda x, purpose: x / 2 if purpose.endswith("/0") else x.flip(1)
    x = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64).view(1, 3, 1, 1)
    logits = adapter(x)

    w = torch.tensor(weight, dtype=torch.float64)
    pixel = x.flatten()
    target = (w @ (pixel / 2) + w @ pixel.flip(0)) / 2  # logits are averaged, not probabilities
    assert (logits[0] - target).abs().max() < EXACT
    gradient = torch.outer((w @ pixel).softmax(0) - target.softmax(0), pixel)
    student = w - 0.5 * gradient
    assert (adapter.model[2].weight - student).abs().max() < EXACT
    teacher = 0.75 * w + 0.25 * student
    assert (adapter.teacher["2.weight"] - teacher).abs().max() < EXACT
    report = adapter.report
    assert (report["augmented"], report["forwards"], report["backwards"]) == (1.0, 4, 1)
    assert report["source_confidence"] == pytest.approx((w @ pixel).softmax(0).max().item())
    # The method answers with its teacher, also without adapting.
    bias = adapter.teacher["2.bias"]
    assert (adapter.predict(x)[0] - (teacher @ pixel + bias)).abs().max() < EXACT


def test_cotta_asks_the_source_model_and_not_the_student():
    adapter = tta.wrap(network(), "cotta", num_views=2, lr=0.05, confidence_threshold=0.0)
    x = batch()
    adapter(x)
    first = adapter.report["source_confidence"]
    for _ in range(4):
        adapter(x)
    assert adapter.report["source_confidence"] == first
    assert adapter.report["augmented"] == 0.0
    assert adapter.report["forwards"] == 3 * len(x)


def test_cotta_restores_to_the_source_after_the_average():
    source = network()
    adapter = tta.wrap(source, "cotta", num_views=1, lr=0.05, restore_probability=1.0)
    adapter(batch())
    student = dict(adapter.model.named_parameters())
    for name, kept in source.named_parameters():
        assert torch.equal(student[name], kept)  # all of it went back
    moved = [not torch.equal(adapter.teacher[n], p) for n, p in source.named_parameters()]
    assert any(moved)  # but the teacher had taken its part before


def test_cotta_holds_three_copies_of_the_weights():
    adapter = tta.wrap(network(), "cotta", num_views=1)
    adapter(batch())
    kept = adapter._initial
    assert kept["states"]["teacher"] is None
    named = dict(adapter.model.named_parameters())
    assert not any(key.startswith("teacher") for key in kept["tensors"])
    assert set(adapter.teacher) == set(named)
    assert not [m for n, m in adapter.named_children() if n != "model"]


def test_cotta_moves_with_its_source():
    adapter = tta.wrap(network(), "cotta", num_views=2)
    adapter(batch())
    adapter.float()
    assert adapter(batch().float()).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in adapter.teacher.values())
    assert adapter._initial["tensors"]["model.0.weight"].dtype == torch.float32


def test_what_is_called_weight_or_bias_is_trained():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3, dtype=torch.float64))
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + self.token.view(1, 3, 1, 1))

    trained = mean_teacher.trainable(Token().requires_grad_(False), "named")
    assert "token" not in trained
    assert len(trained) == 6
    assert "token" in mean_teacher.trainable(Token(), "all")
    with pytest.raises(tta.AdapterError, match=r"the model has 0 of any name and no normalis"):
        tta.wrap(nn.Flatten(), "cotta")


# PETAL ------------------------------------------------------------------------------------------


def test_prior_of_the_card_and_its_gradient():
    params = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([-1.0]).double()]
    mean = [torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([0.0]).double()]
    variance = [torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0.5]).double()]
    grads = [torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    value = posterior.add_prior(params, grads, mean, variance, 2.0)
    assert value.item() == pytest.approx(2.2499855, abs=5e-8)
    assert grads[0].tolist() == pytest.approx([1 + 2 * 0.5 / 0.100001, 1.0], abs=EXACT)
    assert grads[1].item() == pytest.approx(1 - 2 / 0.500001, abs=EXACT)


def test_fisher_quantile_of_the_card():
    grads = [torch.tensor([5.0, 1.0]).sqrt(), torch.tensor([[3.0], [2.0], [4.0]]).sqrt()]
    # The threshold is 2.2.
    assert posterior.below_quantile(grads, 0.3).tolist() == [False, True, False, True, False]
    assert not posterior.below_quantile(grads, 0.0).any()
    assert posterior.below_quantile(grads, 1.0).sum() == 4  # strictly below the largest
    assert not posterior.below_quantile([torch.zeros(9)], 0.5).any()  # nothing is below zero
    assert not posterior.below_quantile([torch.ones(1)], 0.5).any()


@pytest.mark.parametrize("quantile", [0.03, 0.5, 0.77, 1.0])
def test_fisher_quantile_is_torchs(quantile):
    grads = torch.randn(1001, generator=seeded(), dtype=torch.float64)
    wanted = grads.square() < grads.square().quantile(quantile)
    assert torch.equal(posterior.below_quantile([grads], quantile), wanted)


def test_moments_are_those_of_the_snapshots():
    snapshots = torch.randn(6, 4, generator=seeded(), dtype=torch.float64) + 1e6
    moments = posterior.Moments([snapshots[0]])
    for snapshot in snapshots:
        moments.add([snapshot])
    assert (moments.mean[0] - snapshots.mean(0)).abs().max() < 1e-8
    assert (moments.variance()[0] - snapshots.var(0, correction=0)).abs().max() < 1e-8


def test_petal_fit_by_hand():
    """Three intervals of one batch: SGD on labels, mean and variance of the last two weights."""
    weight = [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]
    adapter = tta.wrap(
        linear(weight),
        "petal",
        swag_interval=1,
        swag_lr=(0.1, 0.4),
        swag_momentum=0.0,
        swag_weight_decay=0.0,
    )
    data = [(batch(2, seed=i), torch.tensor([0, 1])) for i in range(3)]
    adapter.fit_source(data)

    w = torch.tensor(weight, dtype=torch.float64)
    b = torch.zeros(2, dtype=torch.float64)
    seen = []
    for (x, y), lr in zip(data, (0.1, 0.1, 0.2), strict=True):  # .1 + .3 / 3 at the second
        pixel = x.mean((2, 3))
        away = ((pixel @ w.T + b).softmax(1) - F.one_hot(y, 2)) / 2
        w, b = w - lr * away.T @ pixel, b - lr * away.sum(0)
        seen.append(w)
    mean, variance = (seen[1] + seen[2]) / 2, (seen[1] - seen[2]).square() / 4
    assert (adapter.model[2].weight - mean).abs().max() < EXACT
    assert (adapter.variance["2.weight"] - variance).abs().max() < EXACT
    adapter(batch())
    adapter.reset()
    assert (adapter.model[2].weight - mean).abs().max() < EXACT  # reset keeps what was fitted
    assert adapter.variance is not None


def test_petal_fit_uses_running_statistics_and_says_what_it_lacks():
    net = network()
    adapter = tta.wrap(net, "petal", swag_interval=2, swag_lr=(1e-9, 1e-9))
    data = [(batch(seed=i) / 3, torch.arange(4)) for i in range(6)]
    adapter.fit_source(data)
    x, y = data[0]
    with torch.no_grad():
        before = F.cross_entropy(net.eval()(x), y)
        adapted = F.cross_entropy(adapter.model(x), y)
    assert abs(before - adapted) > 1e-3  # adaptation itself takes the batch's
    fresh = tta.wrap(net, "petal", swag_interval=2)
    with pytest.raises(tta.AdapterError, match=r"5 batches with swag_interval=2 give 1; pass at"):
        fresh.fit_source(data[:5])
    with pytest.raises(tta.AdapterError, match="labelled"):
        fresh.fit_source([x])


def test_petal_takes_a_posterior_from_elsewhere():
    adapter = tta.wrap(network(), "petal", num_views=1, prior_weight=1.0)
    mean = {name: p + 1 for name, p in network().named_parameters()}
    variance = {name: torch.full_like(p, -1.0) for name, p in mean.items()}
    adapter(batch())
    adapter.set_posterior(mean, variance)
    assert adapter.num_steps == 0
    assert torch.equal(adapter.model[0].weight, mean["0.weight"])
    assert adapter.variance["5.bias"].eq(0).all()  # below zero counts as zero
    adapter(batch())
    assert adapter.report["prior"] == 0.0  # the student stood at its mean
    with pytest.raises(tta.AdapterError, match=r"variance of '0.weight' .* found nothing"):
        adapter.set_posterior(mean, {})


def test_petal_restores_the_weights_of_lowest_fisher_value():
    """Plain SGD without a prior: what had a small gradient is back, what had a large one moved."""
    source = network()
    options = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "confidence_threshold": 0.0}
    adapter = tta.wrap(
        source, "petal", prior_weight=0.0, fisher_quantile=0.4, loss="symmetric", **options
    )
    free = tta.wrap(source, "cotta", restore_probability=0.0, loss="symmetric", **options)
    for step in range(2):  # in the first step student and teacher agree: no gradient but noise
        adapter(batch(seed=step)), free(batch(seed=step))
        if step == 0:
            with torch.no_grad():
                for mine, other in zip(
                    adapter.model.parameters(), free.model.parameters(), strict=True
                ):
                    mine += 0.1
                    other.copy_(mine)
            start = [p.detach().clone() for p in adapter.model.parameters()]
    moved = torch.cat(
        [(p - s).flatten() for p, s in zip(free.model.parameters(), start, strict=True)]
    )
    low = moved.square() < moved.square().quantile(0.4)
    mine = torch.cat([p.detach().flatten() for p in adapter.model.parameters()])
    anchor = torch.cat([p.detach().flatten() for p in source.parameters()])
    unrestored = torch.cat([p.detach().flatten() for p in free.model.parameters()])
    clear = (moved.square() - moved.square().quantile(0.4)).abs() > 1e-16
    assert low.sum() > 20
    assert torch.equal(mine[low & clear], anchor[low & clear])
    assert (mine - unrestored)[~low & clear].abs().max() < 1e-9


def test_petal_without_prior_and_at_random_is_cotta():
    options = {"num_views": 3, "lr": 0.01}
    petal = tta.wrap(network(), "petal", prior_weight=0.0, restore="random", **options)
    cotta = tta.wrap(network(), "cotta", **options)
    for step in range(3):
        assert torch.equal(petal(batch(seed=step)), cotta(batch(seed=step)))


# MEMO -------------------------------------------------------------------------------------------


def test_marginal_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]], dtype=torch.float64)
    logits.requires_grad_(True)
    loss = marginal_entropy(logits)  # of (5/8, 3/8)
    loss.backward()
    assert loss.item() == pytest.approx(
        -5 / 8 * math.log(5 / 8) - 3 / 8 * math.log(3 / 8), abs=EXACT
    )
    # dL/dz = p (g - sum p g) / V with g = -(ln mean + 1), for each view's own p.
    g = -math.log(5 / 8) + math.log(3 / 8)
    wanted = [[3 / 16 * g / 2, -3 / 16 * g / 2], [1 / 4 * g / 2, -1 / 4 * g / 2]]
    assert (logits.grad - torch.tensor(wanted, dtype=torch.float64)).abs().max() < EXACT
    sure = torch.tensor([[1e4, 0.0, 0.0]])
    assert marginal_entropy(sure).item() == 0.0
    assert marginal_entropy(torch.zeros(3, 5, 2, 2)).shape == (2, 2)


def memo_step(weight: Tensor, pixels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear model after one step on views with these channel means."""
    p = (pixels @ weight.T).softmax(1)
    g = -(p.mean(0).log() + 1)
    away = p * (g - (p * g).sum(1, keepdim=True)) / len(p)
    return weight - lr * away.T @ pixels, -lr * away.sum(0)


@pytest.mark.parametrize(("momentum", "length"), [(0.0, 1.0), (0.9, 1.9)])
def test_memo_step_by_hand(momentum, length):
    """One step of SGD; with a fresh Nesterov momentum of .9 it is 1.9 times as long."""
    weight = [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]
    adapter = tta.wrap(
        linear(weight),
        "memo",
        lr=0.5,
        num_views=2,
        momentum=momentum,
        nesterov=momentum > 0,
        keep_moments=False,
    )
    adapter.augment = lambda image, purpose: torch.cat([image / 2, image.flip(1)])
    x = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.1, 0.3]], dtype=torch.float64)[:, :, None, None]
    logits = adapter(x)
    w = torch.tensor(weight, dtype=torch.float64)
    for row, pixel in enumerate(x.flatten(1)):  # each from the source weights
        new, bias = memo_step(w, torch.stack([pixel / 2, pixel.flip(0)]), 0.5 * length)
        assert (logits[row] - (new @ pixel + bias)).abs().max() < EXACT
    assert (adapter.report["forwards"], adapter.report["backwards"]) == (6, 4)


def test_memo_takes_images_one_by_one():
    net, x = network(), batch(3)
    whole = tta.wrap(net, "memo", num_views=3, lr=0.05)(x)
    same = tta.wrap(net, "memo", num_views=3, lr=0.05)
    first = same(x[:1])
    assert torch.equal(first[0], whole[0])  # neighbours change nothing
    assert not torch.equal(first, same(x[:1]))  # another step, other views
    again = tta.wrap(net, "memo", num_views=3, lr=0.05, seed=1)
    assert not torch.equal(first, again(x[:1]))


def test_memo_mixes_the_statistics_of_batchnorm():
    net, x = network(), batch(1)
    adapter = tta.wrap(net, "memo", num_views=2, lr=1e-12)
    got = adapter(x)
    plain = copy.deepcopy(net).eval()
    with torch.no_grad():
        features = plain[0](x)
        var, mean = torch.var_mean(features, (0, 2, 3))
        plain[1].running_mean.mul_(16 / 17).add_(mean / 17)
        plain[1].running_var.mul_(16 / 17).add_(var / 17)
        assert (got - plain(x)).abs().max() < 1e-9
    frozen = tta.wrap(net, "memo", num_views=2, lr=1e-12, bn_weight=0.0)
    with torch.no_grad():
        assert (frozen(x) - net.eval()(x)).abs().max() < 1e-9


def test_memo_keeps_moments_between_images_where_asked():
    options = {"num_views": 2, "optimizer": "adamw", "lr": 1e-3, "crop": "none"}
    kept = tta.wrap(network(), "memo", **options)
    fresh = tta.wrap(network(), "memo", keep_moments=False, **options)
    for adapter, steps in ((kept, 4), (fresh, 1)):
        adapter(batch(4))
        assert {int(state["step"]) for state in adapter.optimizer.state.values()} == {steps}


def test_small_views_share_a_forward_and_large_ones_do_not():
    seen = []

    def forward(x):
        seen.append(len(x))
        return x.mean((2, 3))

    means = []
    for side in (32, 64):
        shown = [torch.full((2, 3, side, side), float(number)) for number in range(4)]
        means.append(views.mean_logits(forward, [], shown.__getitem__, 4, images_per_forward=8))
    assert seen == [8, 2, 2, 2, 2]
    assert torch.equal(means[0], torch.full((2, 3), 1.5))
    assert torch.equal(*means)
