"""Hand-computed values of AdaContrast, its queue and bank, and the views that it learns from."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tta
from tta import augment_strong, norms
from tta.adapters import adacontrast


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


# AdaContrast ------------------------------------------------------------------------------------


def test_pseudo_labels_are_the_vote_of_the_neighbours() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0], [1, 0.2], [0, 1], [-1, 0]]), dim=1)
    probs = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.9, 0.1], [1, 0]])
    features = torch.tensor([[10.0, 0], [0.1, 5]])
    # Nearest of the first: rows 0 and 1, mean (.35, .65); of the second: rows 2 and 1, (.5, .5).
    assert adacontrast.refined_labels(features[:1], bank, probs, 2).tolist() == [1]
    assert adacontrast.refined_labels(features, bank, probs, 1).tolist() == [0, 0]
    # Four rows for ten neighbours: all vote, (.65, .35).
    assert adacontrast.refined_labels(features, bank, probs, 10).tolist() == [0, 0]


def test_instance_loss_leaves_out_the_own_class() -> None:
    query = torch.tensor([[1, 0], [0, 1]], dtype=torch.float64)
    keys = torch.tensor([[0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    queue = torch.tensor([[1, 0], [0, 1], [-1, 0]], dtype=torch.float64)
    same = torch.tensor([[True, False, False], [True, True, True]])
    got = adacontrast.instance_loss(query, keys, queue, same, 0.5).item()
    first = math.log(math.exp(1.2) + math.exp(0) + math.exp(-2)) - 1.2
    assert got == pytest.approx(first / 2, abs=1e-12)  # the second has no rival left


def test_diversity_loss() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64).log()
    expected = 0.6 * math.log(0.6) + 0.4 * math.log(0.4)
    assert adacontrast.diversity_loss(logits).item() == pytest.approx(expected, abs=1e-7)


def test_a_ring_wraps_and_drops_what_does_not_fit() -> None:
    slots, kept = adacontrast.ring(3, 3, 4)
    assert (slots.tolist(), kept) == ([3, 0, 1], slice(0, 3))
    slots, kept = adacontrast.ring(1, 6, 4)  # rows 0 and 1 would be overwritten at once
    assert (slots.tolist(), kept) == ([3, 0, 1, 2], slice(2, 6))


def plain(method_options: dict[str, float | int]) -> tta.Adapter:
    """AdaContrast without augmentation, whose key encoder stands still."""
    adapter = tta.wrap(small_net(), "adacontrast", key_momentum=1.0, **method_options)
    adapter.augment = lambda x, purpose: x
    return adapter


def test_queue_and_bank_wrap_in_the_order_of_arrival() -> None:
    adapter = plain({"queue_size": 4, "bank_size": 4, "refine_after": 100})
    drawn = adapter.queue.clone()
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4).double())
    batches = images(3, seed=1), images(3, seed=2)
    keys, probs, labels = [], [], []
    for x in batches:
        with torch.no_grad():
            features, logits = adapter._tap(adapter.key_model, x)
            student = norms_of_the_batch(adapter.model, x)
        keys.append(F.normalize(features, dim=1))
        probs.append(logits.softmax(1))
        labels.append(student.argmax(1))
        adapter(x)
        if x is batches[0]:
            torch.testing.assert_close(adapter.queue, torch.cat((keys[0], drawn[3:])))
            torch.testing.assert_close(adapter.bank, keys[0])
    order = [keys[1][1], keys[1][2], keys[0][2], keys[1][0]]
    torch.testing.assert_close(adapter.queue, torch.stack(order))
    torch.testing.assert_close(adapter.bank, torch.stack(order))
    order = [probs[1][1], probs[1][2], probs[0][2], probs[1][0]]
    torch.testing.assert_close(adapter.bank_probs, torch.stack(order))
    order = [labels[1][1], labels[1][2], labels[0][2], labels[1][0]]
    assert torch.equal(adapter.queue_labels, torch.stack(order))
    assert (adapter.queue_at, adapter.bank_at, adapter.images_seen) == (2, 2, 6)


def norms_of_the_batch(model: nn.Module, x: Tensor) -> Tensor:
    """Logits with the statistics of the batch; the model stays as it is."""
    twin = copy.deepcopy(model)
    norms.use_batch_statistics(twin)
    return twin(x)


def test_adacontrast_loss_of_a_first_step() -> None:
    adapter = plain({"queue_size": 5, "temperature": 0.5, "refine_after": 100})
    x = images(3, seed=3)
    with torch.no_grad():
        features, logits = adapter._tap(adapter.key_model, x)  # student and key are still equal
    labels = logits.argmax(1)
    unit = F.normalize(features, dim=1)
    # The first three columns have the labels of this batch by the time the mask is made.
    owners = torch.cat((labels, adapter.queue_labels[3:]))
    instance = 0.0
    for i in range(3):
        rivals = [adapter.queue[c] @ unit[i] for c in range(5) if owners[c] != labels[i]]
        terms = torch.stack([unit[i] @ unit[i], *rivals]) / 0.5
        instance += float(terms.exp().sum().log() - terms[0]) / 3
    mean = logits.softmax(1).mean(0)
    expected = F.cross_entropy(logits, labels) + instance + (mean * (mean + 1e-8).log()).sum()
    adapter(x)
    assert adapter.report["loss"] == pytest.approx(float(expected), abs=1e-10)
    assert (adapter.report["forwards"], adapter.report["backwards"]) == (15, 3)


def test_adacontrast_answers_after_the_update_with_running_statistics() -> None:
    adapter = tta.wrap(small_net(), "adacontrast", queue_size=8, lr=0.05)
    x = images(5)
    before = adapter.model[1].running_mean.clone()
    answer = adapter(x)
    assert not torch.equal(adapter.model[1].running_mean, before)
    torch.testing.assert_close(answer, adapter.predict(x), rtol=0, atol=0)
    assert adapter.predicts == "after"
    assert not any(module.training for module in adapter.model.modules())


def test_neighbours_vote_once_enough_images_were_seen() -> None:
    adapter = plain({"queue_size": 8, "refine_after": 4, "neighbours": 1, "lr": 1e-9})
    x = images(3)
    adapter(x)
    assert adapter.images_seen == 3
    adapter(x)
    assert adapter.images_seen == 6
    # Whatever the student says now, the vote of the bank decides.
    adapter.bank_probs = torch.tensor([[0.0, 0, 0, 1]]).double().expand(6, 4).clone()
    adapter(x)
    assert adapter.queue_labels[6:].tolist() == [3, 3]
    assert adapter.images_seen == 6


# Views ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [augment_strong.weak, augment_strong.strong])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_views_are_drawn_image_by_image(view, channels: int) -> None:
    x = torch.rand(1, channels, 9, 7, generator=torch.Generator().manual_seed(0)).expand(
        16, -1, -1, -1
    )
    kept = x.clone()
    first = view(x, torch.Generator().manual_seed(1))
    assert torch.equal(first, view(x, torch.Generator().manual_seed(1)))
    assert torch.equal(x, kept)
    assert first.shape == x.shape
    assert 0 <= first.min() <= first.max() <= 1
    different = {tuple(image.flatten().tolist()) for image in first}
    assert len(different) == 2 if view is augment_strong.weak else len(different) > 10


def test_strong_views_as_often_as_they_should() -> None:
    x = images(1).expand(2000, -1, -1, -1)[:, :, :4, :4].float()
    views = augment_strong.strong(x, torch.Generator().manual_seed(0))
    gray = (views.amax(1) - views.amin(1)).amax(dim=(1, 2)) < 1e-6
    assert gray.float().mean().item() == pytest.approx(0.2, abs=0.03)
    same = ((views - x).abs().amax(dim=(1, 2, 3)) < 1e-6) | (
        (views - x.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-6
    )
    assert same.float().mean().item() == pytest.approx(0.2 * 0.8 * 0.5, abs=0.02)


def test_blur_is_a_gaussian() -> None:
    x = torch.zeros(2, 1, 15, 15, dtype=torch.float64)
    x[:, :, 7, 7] = 1
    blurred = augment_strong._blur(x, torch.tensor([1.0, 0.5], dtype=torch.float64))
    for image, sigma in zip(blurred[:, 0], (1.0, 0.5), strict=True):
        taps = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-6, 7)]
        taps = [tap / sum(taps) for tap in taps]
        assert image[7, 7].item() == pytest.approx(taps[6] ** 2)
        assert image[6, 9].item() == pytest.approx(taps[5] * taps[8])
    flat = torch.full((1, 3, 5, 5), 0.3, dtype=torch.float64)
    torch.testing.assert_close(augment_strong._blur(flat, torch.tensor([2.0]).double()), flat)
