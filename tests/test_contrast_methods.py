"""Hand-computed values of RMT, SANTA, ROID and CMF, and what no trace reaches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tta
from tta import contrast
from tta.adapters import roid

Z = torch.tensor([[2, 0, -1], [0.5, 0.4, 0.3], [-1, 3, 0], [0, 0, 4]], dtype=torch.float64)
Z_AUGMENTED = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 2, 1], [1, 1, 3]], dtype=torch.float64)
Z_TEACHER = torch.tensor(
    [[1, 0.5, -0.5], [0.2, 0.1, 0.9], [0, 2, -1], [-1, 1, 2]], dtype=torch.float64
)


class Table(nn.Module):
    """Given features for the images' row numbers, one table a call, scaled by a norm layer."""

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self.tables = tables
        self.calls = 0
        self.norm = nn.LayerNorm(1).double()

    def forward(self, x: Tensor) -> Tensor:
        table = self.tables[self.calls % len(self.tables)]
        self.calls += 1
        return table[x[:, 0, 0, 0].round().long()] * self.norm.weight + self.norm.bias


def lookup(*tables: Tensor) -> nn.Module:
    """Features and logits are the tables."""
    head = nn.Linear(tables[0].shape[1], tables[0].shape[1], bias=False).double()
    nn.init.eye_(head.weight)
    return nn.Sequential(Table(*tables), head)


def rows(count: int) -> Tensor:
    values = torch.arange(count, dtype=torch.float64)
    return values[:, None, None, None].expand(-1, 3, 4, 4).clone()


def small_net(channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        ).double()


def images(count: int, seed: int = 0) -> Tensor:
    """Images of 8-bit pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 8, 8), generator=generator).double() / 255


def labelled(count: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    x, y = images(count, seed=9), torch.arange(count) % 3
    return list(zip(x.split(batch), y.split(batch), strict=True))


# The contrastive loss ---------------------------------------------------------------------------


def test_contrastive_loss() -> None:
    views = torch.tensor(
        [[[1, 0], [0, 1]], [[0.8, 0.6], [0.28, 0.96]], [[0.6, 0.8], [1, 0]]], dtype=torch.float64
    )
    assert contrast.loss(views, 0.1).item() == pytest.approx(4.1311948, abs=1e-7)
    # The length of a view does not count.
    assert contrast.loss(views * 3, 0.1).item() == pytest.approx(4.1311948, abs=1e-7)


def test_contrastive_loss_of_one_image_has_its_views_as_negatives() -> None:
    views = torch.tensor([[[1.0, 0]], [[1, 0]], [[0, 1]]], dtype=torch.float64)
    pull = (math.log(math.exp(1) + 1) * 2 - 1) / 2 * 2 + math.log(2)
    assert contrast.loss(views, 1.0).item() == pytest.approx(pull / 3, abs=1e-12)


def test_the_nearest_prototype_is_one_that_has_images() -> None:
    prototypes = torch.tensor([[0.0, 0], [-5, -1], [-1, -1]])
    features = torch.tensor([[1.0, 1], [-1, -0.1]])
    # Class 0 has none: its cosine of 0 would beat the negative ones of the first image.
    assert contrast.nearest(features, prototypes).tolist() == [1, 1]
    assert contrast.nearest(
        features, prototypes.masked_fill(prototypes == 0, math.nan)
    ).tolist() == [
        1,
        1,
    ]


def test_prototypes_get_no_gradient_and_the_views_do() -> None:
    features = torch.tensor([[1.0, 0.5], [0.2, 1]], requires_grad=True)
    augmented = torch.tensor([[1.0, 0.4], [0.1, 1]], requires_grad=True)
    layers = contrast.projector(2, 3, torch.Generator().manual_seed(0), features)
    contrast.prototype_loss(layers, torch.eye(2), features, augmented, 0.1).backward()
    assert all(
        t.grad is not None and bool((t.grad != 0).any())
        for t in (features, augmented, *layers.parameters())
    )
    bound = 2**-0.5
    assert all(bool((p.abs() <= bound).all()) for p in layers[0].parameters())
    assert layers[0].weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.4)


# RMT --------------------------------------------------------------------------------------------


def test_rmt_self_training_loss() -> None:
    # Calls: source features, student, augmented student, teacher.
    adapter = tta.wrap(
        lookup(Z, Z, Z_AUGMENTED, Z_TEACHER),
        "rmt",
        contrast_weight=0.0,
        source_weight=0.0,
        warm_up_images=0,
    )
    adapter.augment = lambda x, purpose: x
    adapter.fit_source([(rows(4), torch.tensor([0, 1, 2, 2]))])
    logits = adapter(rows(4))
    assert adapter.report["loss"] == pytest.approx(0.9287766, abs=1e-7)
    torch.testing.assert_close(logits, Z + Z_TEACHER)
    torch.testing.assert_close(adapter.prototypes, torch.stack((Z[0], Z[1], (Z[2] + Z[3]) / 2)))
    assert adapter.report["forwards"] == 12
    assert len(adapter.replay) == 0  # source-free: no image is kept


def test_rmt_replays_the_source_images_with_their_labels() -> None:
    options = {"teacher_weight": 0.0, "contrast_weight": 0.0, "warm_up_images": 0}
    adapter = tta.wrap(small_net(), "rmt", replay_images=100, **options)
    source = labelled(10, batch=4)
    adapter.fit_source(source)
    x, y = (torch.cat(parts) for parts in zip(*source, strict=True))
    torch.testing.assert_close(adapter.replay.double() / 255, x, rtol=0, atol=0)
    assert torch.equal(adapter.replay_labels, y)
    # As many source images as there are: the loss is that of all of them.
    expected = F.cross_entropy(adapter.model(x), y).item()
    adapter(images(12))
    assert adapter.report["loss"] == pytest.approx(expected, abs=1e-12)
    assert adapter.report["backwards"] == 2 * 12 + 10


def test_rmt_keeps_a_uniform_sample_of_pairs() -> None:
    kept = torch.zeros(40)
    for seed in range(30):
        adapter = tta.wrap(small_net(), "rmt", replay_images=10, warm_up_images=0, seed=seed)
        source = [
            (torch.full((1, 3, 4, 4), i / 255, dtype=torch.float64), torch.tensor([i % 4]))
            for i in range(40)
        ]
        adapter.fit_source(source)
        ids = adapter.replay[:, 0, 0, 0].long()
        assert len(set(ids.tolist())) == 10
        assert torch.equal(adapter.replay_labels, ids % 4)
        kept[ids] += 1
    # 30 x 10 places for 40 images: 7.5 each, about 2.4 of spread.
    assert kept[:10].mean().item() == pytest.approx(7.5, abs=3)
    assert kept[-10:].mean().item() == pytest.approx(7.5, abs=3)


def test_rmt_warm_up_raises_the_rate_and_is_what_reset_goes_back_to() -> None:
    net = small_net()
    adapter = tta.wrap(net, "rmt", warm_up_images=12, warm_up_batch=4, lr=0.01)
    adapter.fit_source(labelled(8, batch=4))
    assert [group["lr"] for group in adapter.optimizer.param_groups] == [0.01]
    warm = {k: v.clone() for k, v in adapter.model.state_dict().items()}
    moved = (warm["0.weight"] - net.state_dict()["0.weight"]).abs()
    # Adam's first steps are about as long as the rate: a third, two thirds and the whole of it.
    assert 0.01 < moved.max() < 0.025
    teacher = (adapter.teacher["0.weight"] - net.state_dict()["0.weight"]).abs()
    assert 0 < teacher.max() < 1e-4
    step = next(iter(adapter.optimizer.state.values()))["step"]
    assert step == 3
    assert adapter._report["forwards"] == 3 * 4 * 2  # student and teacher
    adapter(images(4))
    adapter.reset()
    assert all(torch.equal(v, warm[k]) for k, v in adapter.model.state_dict().items())
    assert next(iter(adapter.optimizer.state.values()))["step"] == 3


def test_rmt_refuses_source_images_of_two_sizes() -> None:
    adapter = tta.wrap(small_net(), "rmt", warm_up_images=0)
    source = [(images(4), torch.arange(4)), (images(4)[..., :6], torch.arange(4))]
    with pytest.raises(tta.AdapterError, match="one size"):
        adapter.fit_source(source)


def test_few_source_images_give_a_short_warm_up() -> None:
    options = {"warm_up_images": 50_000, "warm_up_passes": 2}
    for count, rounds in ((8, 2), (12, 3)):  # 16 and 24 images in batches of 8
        adapter = tta.wrap(small_net(), "rmt", warm_up_batch=8, **options)
        adapter.fit_source(labelled(count, batch=4))
        assert next(iter(adapter.optimizer.state.values()))["step"] == rounds


def test_rmt_predicts_with_student_and_teacher() -> None:
    adapter = tta.wrap(small_net(), "rmt", source_weight=0.0, warm_up_images=0, lr=0.1)
    adapter.fit_source(labelled(8, batch=4))
    x = images(4)
    torch.testing.assert_close(adapter.predict(x), adapter(x))
    torch.testing.assert_close(adapter.predict(x), adapter(x))  # they differ by now


# SANTA ------------------------------------------------------------------------------------------


def test_santa_weighs_the_anchor_by_the_student() -> None:
    # Calls: source features, student, augmented student, anchor.
    adapter = tta.wrap(lookup(Z, Z, Z_AUGMENTED, Z_TEACHER), "santa", contrast_weight=0.0)
    adapter.augment = lambda x, purpose: x
    adapter.fit_source([(rows(4), torch.tensor([0, 1, 2, 2]))])
    logits = adapter(rows(4))
    total = 0.0
    for student in (Z, Z_AUGMENTED):
        for mine, anchor in zip(student.tolist(), Z_TEACHER.tolist(), strict=True):
            weight = [math.exp(v) / sum(map(math.exp, mine)) for v in mine]
            log_norm = math.log(sum(map(math.exp, anchor)))
            total -= sum(w * (a - log_norm) for w, a in zip(weight, anchor, strict=True)) / 8
    assert adapter.report["loss"] == pytest.approx(total, abs=1e-12)
    torch.testing.assert_close(logits, Z)


def test_santa_keeps_its_anchor_and_learns_its_projector() -> None:
    adapter = tta.wrap(small_net(), "santa", projection_dim=5, lr=0.05)
    adapter.fit_source(labelled(9, batch=9))
    prototypes, first = adapter.prototypes.clone(), adapter.projector[0].weight.detach().clone()
    assert prototypes.any(dim=1).tolist() == [True, True, True, False]  # no image of class 3
    for seed in range(3):
        adapter(images(6, seed))
    assert torch.equal(adapter.anchor["1.weight"], torch.ones(6).double())
    assert not torch.equal(adapter.model[1].weight, adapter.anchor["1.weight"])
    assert not torch.equal(adapter.projector[0].weight, first)
    adapter.reset()
    assert torch.equal(adapter.projector[0].weight, first)
    assert torch.equal(adapter.prototypes, prototypes)


@pytest.mark.parametrize("method", ["rmt", "santa"])
def test_labels_are_needed(method: str) -> None:
    adapter = tta.wrap(small_net(), method)
    with pytest.raises(tta.AdapterError, match="labelled"):
        adapter.fit_source([images(4)])


# ROID and CMF -----------------------------------------------------------------------------------


def logits_of(*probs: tuple[float, ...]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def test_soft_likelihood_ratio() -> None:
    logits = logits_of((0.7, 0.2, 0.1), (0.999, 0.0005, 0.0005)).requires_grad_()
    loss = roid.likelihood_ratio(logits, 0.99)
    assert loss.tolist() == pytest.approx([-0.096147, -4.541588], abs=1e-6)
    # A clipped probability pushes its logit through the normalisation of the others alone.
    loss[1].backward()
    p, low = 0.999, 0.0005
    slope = -(math.log(low / (1 - low) + 1e-5) + low / (1 - low) ** 2 / (low / (1 - low) + 1e-5))
    assert logits.grad[1, 0].item() == pytest.approx(2 * slope * -p * low, abs=1e-9)


def test_weights_of_certainty_and_diversity() -> None:
    adapter = tta.wrap(small_net(), "roid")
    weight, kept = adapter._weights(logits_of((0.5, 0.5), (0.9, 0.1), (0.2, 0.8)))
    assert kept.tolist() == [1, 2]  # the first looks like the average: nothing new
    assert weight.tolist() == pytest.approx([20.0855369, 2.7778418], abs=1e-6)
    assert adapter.class_probs.tolist() == pytest.approx([0.45 + 0.16 / 3, 0.45 + 0.14 / 3])


def test_equal_images_weigh_one() -> None:
    adapter = tta.wrap(small_net(), "roid")
    for batch in (logits_of((0.9, 0.1)), logits_of(*[(0.3, 0.7)] * 7)):
        weight, kept = adapter._weights(batch)
        assert kept.tolist() == list(range(len(batch)))
        assert weight.tolist() == [1.0] * len(batch)


def test_prior_correction_multiplies_the_logits() -> None:
    logits = torch.tensor([[math.log(3), 0], [-1, -1]], dtype=torch.float64)
    # Mean (5/8, 3/8); smoothing max(1/2, 1/2) / (5/8) = 0.8.
    first, second = (0.625 + 0.8) / 2.6, (0.375 + 0.8) / 2.6
    got = roid.prior_corrected(logits)
    assert got[0].tolist() == pytest.approx([math.log(3) * first, 0])
    assert got[1].tolist() == pytest.approx([-first, -second])


def test_roid_divides_by_a_constant_if_told() -> None:
    x, reports = images(4), []
    for size in (None, 4, 8):
        adapter = tta.wrap(small_net(), "roid", loss_batch_size=size)
        adapter(x)
        reports.append(adapter.report["loss"])
    assert reports[0] == reports[1] == pytest.approx(2 * reports[2])


def test_roid_draws_the_weights_back() -> None:
    adapter = tta.wrap(small_net(), "roid")
    with torch.no_grad():
        adapter.model[1].weight.fill_(2.0)
        adapter._ensemble()
    assert adapter.model[1].weight.tolist() == pytest.approx([1.99] * 6)
    assert adapter.model[1].bias.tolist() == [0.0] * 6


def test_roid_of_single_images_learns_and_stays_finite() -> None:
    adapter = tta.wrap(small_net(), "roid", lr=0.1)
    for x in images(6):
        assert bool(adapter(x[None]).isfinite().all())
        assert adapter.report["update_refused"] == 0
    assert not torch.equal(adapter.model[1].bias, torch.zeros(6).double())


def test_cmf_filter() -> None:
    numbers = 12  # scale and shift of six channels
    adapter = tta.wrap(small_net(), "cmf", process_noise=0.005 * 38_400 / numbers)
    with torch.no_grad():
        adapter.model[1].weight.fill_(2.0)
        adapter._ensemble()
    # Predicted 1, corrected to .995 x 1 + .005 x 2; the weights follow by a hundredth.
    assert adapter.hidden[0].tolist() == pytest.approx([1.005] * 6)
    assert adapter.model[1].weight.tolist() == pytest.approx([0.99 * 2 + 0.01 * 1.005] * 6)
    assert adapter.variance == pytest.approx(0.004975, abs=1e-12)
    with torch.no_grad():
        adapter._ensemble()
        assert adapter.variance == pytest.approx(0.0097789, abs=1e-7)
        for _ in range(998):
            adapter._ensemble()
    assert adapter.variance == pytest.approx(0.0597088, abs=1e-7)
    adapter.reset()
    assert adapter.variance == 0.0


@pytest.mark.parametrize(("noise", "keep"), [(0.5, 0.89), (5e-5, 1.0)])
def test_cmf_limits(noise: float, keep: float) -> None:
    adapter = tta.wrap(small_net(), "cmf", process_noise=noise * 38_400 / 12)
    with torch.no_grad():
        adapter.model[1].weight.fill_(2.0)
        adapter._ensemble()
    assert adapter.hidden[0].tolist() == pytest.approx([keep + (1 - keep) * 2] * 6)
    assert adapter.variance == pytest.approx(keep * noise)
