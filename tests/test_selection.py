"""Choice of training samples: the pure functions by hand, and the plug-in over a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from continual import selection
from continual.factory import create_plugins
from continual.learner import Learner, LearnerConfig
from streams.learning_types import Experience, ForgetRequest, Samples
from tta.errors import AdapterError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Draws and embeddings ---------------------------------------------------------------------------


def test_weighted_draw_is_in_proportion_and_without_replacement():
    weights = torch.tensor([6.0, 3.0, 1.0, 0.0])
    first = np.bincount(
        [int(selection.weighted_draw(weights, 1, seeded(s))) for s in range(2000)], minlength=4
    )
    assert first / 2000 == pytest.approx([0.6, 0.3, 0.1, 0.0], abs=0.04)
    # Two draws leave out the third: 1 - P(c) with P(c) = .1 + .6 * .1 / .4 + .3 * .1 / .7.
    pairs = [tuple(selection.weighted_draw(weights, 2, seeded(s)).tolist()) for s in range(2000)]
    assert all(a < b < 3 for a, b in pairs)
    share = np.mean([2 in pair for pair in pairs])
    assert share == pytest.approx(0.1 + 0.6 * 0.1 / 0.4 + 0.3 * 0.1 / 0.7, abs=0.04)
    assert selection.weighted_draw(weights, 4, seeded()).tolist() == [0, 1, 2, 3]
    with pytest.raises(AdapterError, match="not negative"):
        selection.weighted_draw(torch.tensor([1.0, math.nan]), 1, seeded())


def test_gradient_embedding_is_the_gradient_of_the_last_layer():
    head = nn.Linear(3, 2, bias=False).double()
    h = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    logits = head(h)
    loss = nn.functional.cross_entropy(logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss, [head.weight])
    error = logits.softmax(1).detach() - torch.tensor([[0.0, 1.0]])
    made = selection.gradient_embedding(error, h, 0, seeded())
    assert torch.allclose(made, gradient.flatten()[None])


def test_sketches_keep_inner_products():
    errors, features = (
        torch.randn(6, 4, generator=seeded(1)),
        torch.randn(6, 5, generator=seeded(2)),
    )
    full = selection.gradient_embedding(errors, features, 0, seeded())
    sketch = selection.gradient_embedding(errors, features, 20_000, seeded())
    assert sketch.shape == (6, 20_000)
    scale = full.norm(dim=1)
    gap = (full @ full.T - sketch @ sketch.T) / (scale[:, None] * scale)
    assert gap.abs().max() < 0.05


def test_sample_scores_by_hand():
    # p = (3/4, 1/4), label 1.
    logits, h = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[3.0, 4.0]])
    found = selection.sample_scores(logits, torch.tensor([1]), h)
    assert tuple(found) == selection.SCORES
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            "loss": math.log(4),
            "el2n": math.sqrt(0.75**2 * 2),
            "grand": 5 * math.sqrt(0.75**2 * 2),
            "margin": 0.5,
            "entropy": -0.75 * math.log(0.75) - 0.25 * math.log(0.25),
        }
    )


# Scores and budgets -----------------------------------------------------------------------------


def test_the_score_that_tells_most_apart_is_chosen():
    two = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert selection.histogram_entropy(two) == pytest.approx(math.log(2))
    assert selection.histogram_entropy(1000 * two - 3) == pytest.approx(math.log(2))  # scale-free
    assert selection.histogram_entropy(torch.ones(4)) == 0.0
    scores = {"flat": torch.ones(4), "two": two, "four": torch.arange(4.0)}
    assert selection.histogram_entropy(scores["four"]) == pytest.approx(math.log(4))
    assert selection.sharpest_score(scores) == "four"


@pytest.mark.parametrize(
    ("sizes", "budget", "shares"),
    [
        ([10, 10], 7, [4, 3]),
        ([2, 10, 10], 12, [2, 5, 5]),
        ([10, 2, 10], 12, [5, 2, 5]),
        ([1, 2, 3], 100, [1, 2, 3]),
        ([5, 5, 5], 14, [5, 5, 4]),
        ([3, 1], 1, [0, 1]),
    ],
)
def test_split_budget(sizes, budget, shares):
    assert selection.split_budget(sizes, budget) == shares


def test_coverage_takes_equal_shares_from_high_to_low():
    # Two strata of [0, 10]: one sample is high, nine are low. The high one is taken whole and its
    # share goes down: 1 + 3 of a budget of 4.
    scores = torch.tensor([10.0, *torch.linspace(0, 4, 9).tolist()])
    taken = selection.coverage_sample(scores, 4, seeded(), strata=2, cut=0.0).tolist()
    assert taken[0] == 0
    assert len(taken) == 4
    # The other way round the surplus of the last stratum is filled at random: still four.
    taken = selection.coverage_sample(-scores, 4, seeded(), strata=2, cut=0.0).tolist()
    assert len(set(taken)) == 4
    assert 0 in taken
    # Extremes beyond the quantiles come last.
    scores = torch.arange(100.0)
    taken = selection.coverage_sample(scores, 90, seeded(), strata=5, cut=0.05).tolist()
    assert taken == list(range(5, 95))
    taken = selection.coverage_sample(scores, 95, seeded(), strata=5, cut=0.05).tolist()
    assert set(range(5, 95)) < set(taken)
    assert selection.coverage_sample(scores, 500, seeded()).tolist() == list(range(100))
    assert len(selection.coverage_sample(torch.ones(10), 3, seeded())) == 3


def test_coverage_is_even():
    scores = torch.cat([torch.zeros(900), torch.linspace(0, 1, 100)])
    taken = selection.coverage_sample(scores, 100, seeded(), strata=10, cut=0.0)
    counts = torch.histc(scores[taken], 10, 0, 1)
    assert counts[1:].min() >= 9  # ten a stratum, where a uniform draw would take one
    assert len(taken) == 100


def test_two_clusters_share_the_budget():
    # 90 samples around (10, 0), 10 around (0, 10).
    noise = torch.randn(100, 2, generator=seeded(3)) * 0.1
    centres = torch.cat([torch.tensor([[10.0, 0]] * 90), torch.tensor([[0.0, 10]] * 10)])
    embeddings = centres + noise
    groups = selection.cluster(embeddings, 2, seed=0)
    assert torch.equal(groups[:90], groups[:1].expand(90))
    assert torch.equal(groups[90:], 1 - groups[:10])
    scores = {"loss": torch.rand(100, generator=seeded(4)), "el2n": torch.ones(100)}
    chosen = selection.select(embeddings, scores, 12, seeded(), clusters=2)
    assert int((chosen >= 90).sum()) == 6
    again = selection.select(embeddings, scores, 12, seeded(), clusters=2)
    assert torch.equal(chosen, again)
    # The small cluster is taken whole, the other one gives the rest.
    chosen = selection.select(embeddings, scores, 40, seeded(), clusters=2, score="loss")
    assert int((chosen >= 90).sum()) == 10
    assert len(chosen) == 40


def test_clusters_of_what_is_all_alike():
    assert selection.cluster(torch.ones(5, 3), 10, seed=0).tolist() == [0] * 5
    three = torch.tensor([[0.0], [0.0], [5.0], [9.0]])
    assert len(selection.cluster(three, 10, seed=0).unique()) == 3


def test_pruning_drops_near_duplicates():
    angles = torch.tensor([0.0, 0.05, 1.0, 1.02, 2.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor(
        [[1.0], [7], [2], [3], [1]]
    )
    # Likeness to an earlier row: none, cos .05, cos .95, cos .02, cos .98; length does not count.
    assert selection.least_redundant(embeddings, 3).tolist() == [0, 2, 4]
    assert selection.least_redundant(embeddings, 4).tolist() == [0, 1, 2, 4]
    assert selection.least_redundant(embeddings, 9).tolist() == [0, 1, 2, 3, 4]
    assert selection.prune(embeddings, 3, seeded(), clusters=1).tolist() == [0, 2, 4]
    # More rows than one block of the comparison.
    many = torch.randn(2100, 8, generator=seeded())
    many[2000:] = many[:100] * 2
    assert selection.least_redundant(many, 2000).tolist() == list(range(2000))


# The plug-in ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    labels: np.ndarray
    digest: str = "pixels"

    def images(self, positions, domain):
        draw = np.random.default_rng(0).integers(0, 255, (len(self.labels), 1, 2, 2))
        return torch.from_numpy(draw[positions].astype(np.uint8))


SOURCE = Pixels(np.arange(120) % 4)


def experience(first, last, labels=None):
    at = np.arange(first, last)
    train = Samples(
        source=SOURCE,
        positions=at,
        labels=SOURCE.labels[at] if labels is None else labels,
        tasks=np.zeros(len(at), dtype=np.int64),
    )
    return Experience(name=f"{first}", train=train, task=0)


def learner_of(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    plugins = create_plugins("data-selection", {"data-selection": options})
    return Learner(model, 4, LearnerConfig(lr=0.1, batch_size=10), plugins)


def trained_on(learner, one):
    seen, counts = [], []

    def watch(step):
        seen.extend(step.samples.keys[step.at].tolist())
        counts.append(step.forwards)

    learner.learn(one, watch)
    return seen, counts


def test_selection_over_pool_and_new_samples():
    learner = learner_of(budget=20, clusters=3)
    seen, counts = trained_on(learner, experience(0, 40))
    assert len(set(seen)) == 20
    assert max(seen) < 40
    assert counts == [10 + 40, 10]  # the pass of scores is said with the first step
    seen, counts = trained_on(learner, experience(40, 80))
    assert len(set(seen)) == 20
    assert min(seen) < 40 <= max(seen)
    assert counts == [10 + 80, 10]
    # The ratio is of what an experience brings.
    assert len(trained_on(learner_of(ratio=0.25), experience(0, 40))[0]) == 10
    # A budget that holds all takes all, without a pass.
    seen, counts = trained_on(learner_of(ratio=1.0), experience(0, 40))
    assert sorted(seen) == list(range(40))
    assert counts == [10] * 4


def test_the_pool_keeps_to_its_cap_and_lets_go_for_good():
    learner = learner_of(budget=30, pool_cap=15, clusters=2, projection=0)
    trained_on(learner, experience(0, 40))
    trained_on(learner, experience(40, 80))
    pool = learner.plugins[0].state_dict()["pool"]
    assert len(pool) == 15
    assert int(pool[:, 0].max()) < 40
    gone = set(range(40)) - set(pool[:, 0].tolist())
    seen, _ = trained_on(learner, experience(80, 120))
    assert not set(seen) & gone
    assert len(learner.plugins[0].state_dict()["pool"]) == 15


def test_forgotten_samples_are_never_chosen_again():
    learner = learner_of(budget=70, clusters=2)
    one = experience(0, 40)
    trained_on(learner, one)
    trained_on(learner, experience(40, 60))
    asked = one.train.take(np.arange(10, 30))
    learner.forget(ForgetRequest(name="f", kind="samples", samples=asked))
    seen, _ = trained_on(learner, experience(60, 100))
    assert set(seen) & set(range(10))
    assert not set(seen) & set(range(10, 30))


def test_a_label_of_the_pool_is_the_one_it_came_with():
    learner = learner_of(ratio=10.0)
    changed = (SOURCE.labels[:20] + 1) % 4
    trained_on(learner, experience(0, 20))
    trained_on(learner, experience(0, 20, labels=changed))
    learner.learn(experience(20, 40))
    pool = learner.plugins[0].state_dict()["pool"]
    assert pool[:, 1].tolist() == [*SOURCE.labels[:20].tolist(), *changed.tolist()]
    assert sorted(learner.data.labels.tolist()) == sorted(
        [*SOURCE.labels[:20], *changed, *SOURCE.labels[20:40]]
    )


def test_the_model_must_have_a_linear_classifier_and_the_samples_one_source():
    learner = learner_of(budget=5)
    learner.model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten())
    with pytest.raises(AdapterError, match="linear classifier"):
        learner.learn(experience(0, 40))
    with pytest.raises(AdapterError, match="as_avalanche_benchmark"):
        learner.plugins[0].choose(learner, [1, 2, 3])
