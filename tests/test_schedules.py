"""Learning-rate schedules, the homeostatic rate and the cyclical curriculum, by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from continual.factory import create_plugins
from continual.learner import Learner, LearnerConfig
from continual.schedules import cyclical_fractions, infinite, rewarm_cosine
from streams.learning_types import Experience, ForgetRequest, Samples
from tta.errors import AdapterError

SHAPE = {"peak": 3e-4, "constant": 1.65e-4, "floor": 3e-5, "warmup": 5, "cooldown": 15}
SHAPE["anneal"] = 80


@dataclass(frozen=True)
class Pixels:
    """Grey images of one row; label k brightens pixel k."""

    labels: np.ndarray
    digest: str = "pixels"

    def images(self, positions, domain):
        draw = np.random.default_rng(0).integers(0, 60, (len(self.labels), 1, 1, 4))
        draw[np.arange(len(self.labels)), 0, 0, self.labels] += 180
        return torch.from_numpy(draw[positions].astype(np.uint8))


def samples_of(labels):
    labels = np.asarray(labels, dtype=np.int64)
    return Samples(
        source=Pixels(labels),
        positions=np.arange(len(labels)),
        labels=labels,
        tasks=np.zeros(len(labels), dtype=np.int64),
    )


def experience(samples):
    return Experience(name="one", train=samples, task=0)


def learner_of(name, options=None, *, model=None, **config):
    if model is None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    config = {"lr": 0.1, "batch_size": 4, **config}
    return Learner(model, 4, LearnerConfig(**config), create_plugins(name, {name: options or {}}))


def rates(learner, *experiences):
    seen = []
    for one in experiences:
        learner.learn(one, lambda step: seen.append(step.lr))
    return np.array(seen)


# Pure functions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "rate"),
    [
        (0, 0.0),
        (2.5, 1.5e-4),
        (5, 3e-4),
        (10, 2.325e-4),
        (15, 1.65e-4),
        (50, 1.65e-4),
        (80, 1.65e-4),
        (90, 7.036e-5),
        (100, 3e-5),
    ],
)
def test_infinite(t, rate):
    assert infinite(t, 100, **SHAPE) == pytest.approx(rate, rel=1e-4, abs=1e-12)


def test_infinite_later_data_sets_and_other_cooldowns():
    later = [infinite(t, 100, **SHAPE, first=False) for t in (0, 10, 80, 100)]
    assert later == pytest.approx([1.65e-4, 1.65e-4, 1.65e-4, 3e-5])
    assert infinite(10, 100, **SHAPE, shape="linear") == pytest.approx(2.325e-4)
    # f(.5) / f(1) = (6 ** -.5 - 1) / (11 ** -.5 - 1)
    part = (1 / 6**0.5 - 1) / (1 / 11**0.5 - 1)
    assert infinite(10, 100, **SHAPE, shape="inverse-sqrt") == pytest.approx(
        3e-4 + (1.65e-4 - 3e-4) * part
    )
    ends = [infinite(t, 100, **SHAPE, shape="inverse-sqrt") for t in (5, 15)]
    assert ends == pytest.approx([3e-4, 1.65e-4])


def test_rewarm_cosine():
    made = [
        rewarm_cosine(t, 101, peak=1.0, floor=0.1, warmup=1, start=0.4)
        for t in (0, 0.5, 1, 51, 101)
    ]
    assert made == pytest.approx([0.4, 0.7, 1.0, 0.55, 0.1])
    assert rewarm_cosine(500, 101, peak=1.0, floor=0.1, warmup=1) == pytest.approx(0.1)


def test_cyclical_fractions():
    made = cyclical_fractions(10)
    assert made == (*([0.25, 0.5, 1.0, 0.5] * 4), 0.25, 0.5, 1.0)
    assert len(made) == 19
    assert sum(made) == 10.75
    trimmed = cyclical_fractions(10, trim=True)
    assert trimmed[:-1] == made[:-1]
    assert sum(trimmed) == 10
    assert cyclical_fractions(1, trim=True) == (0.25, 0.5, 0.25)
    assert cyclical_fractions(3, start=1.0) == (1.0, 1.0, 1.0)
    # A largest fraction that is no power of the ratio is met exactly on the way.
    assert cyclical_fractions(2, start=0.25, end=0.7)[:4] == pytest.approx((0.25, 0.5, 0.7, 0.35))


# lr-schedule ------------------------------------------------------------------------------------


def test_rewarm_is_applied_anew_and_ends_at_the_floor():
    data = experience(samples_of([0, 1, 2, 3] * 10))  # ten steps
    found = rates(learner_of("lr-schedule", {"warmup": 0.2}), data, data)
    once = [
        0.05,
        0.1,
        *(rewarm_cosine(t, 10, peak=0.1, floor=0.01, warmup=2) for t in range(3, 11)),
    ]
    assert found == pytest.approx([*once, *once])
    assert found[9] == pytest.approx(0.01)
    last = rates(learner_of("lr-schedule", {"warmup": 0.2, "rewarm_from": "last"}), data, data)
    assert last[10] == pytest.approx((0.01 + 0.1) / 2)


def test_cosine_runs_over_the_whole_stream():
    data = experience(samples_of([0, 1, 2, 3] * 2))  # two steps
    options = {"schedule": "cosine", "experiences": 2, "warmup": 0.0, "min_ratio": 0.2}
    found = rates(learner_of("lr-schedule", options), data, data)
    assert found == pytest.approx(
        [rewarm_cosine(t, 4, peak=0.1, floor=0.02, warmup=0) for t in (1, 2, 3, 4)]
    )
    with pytest.raises(AdapterError, match="number of experiences"):
        create_plugins("lr-schedule", {"lr-schedule": {"schedule": "cosine"}})
    with pytest.raises(AdapterError, match="must not fall"):
        create_plugins("lr-schedule", {"lr-schedule": {"schedule": "infinite", "anneal": 0.1}})


def test_groups_keep_their_ratio_and_their_scale():
    learner = learner_of("lr-schedule", {"schedule": "infinite"})
    weight, bias = learner.model[1].weight, learner.model[1].bias
    learner.optimizer = torch.optim.SGD(
        [{"params": [weight]}, {"params": [bias], "lr": 0.4, "lr_scale": 0.5}], lr=0.1
    )
    learner.learn(experience(samples_of([0, 1, 2, 3] * 10)))
    assert [g["lr"] for g in learner.optimizer.param_groups] == pytest.approx([0.01, 0.02])
    learner.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(AdapterError, match="has 3 now"):
        learner.learn(experience(samples_of([0, 1, 2, 3])))


@pytest.mark.parametrize("reset", [True, False])
def test_infinite_resumes_before_the_annealing(reset):
    data = experience(samples_of([0, 1, 2, 3] * 10))
    options = {"schedule": "infinite"}
    config = {"momentum": 0.9, "reset_optimizer": reset}
    learner = learner_of("lr-schedule", options, **config)
    at_k, moments = [], []

    def watch(step):
        if learner.step == 8:  # the eighth of ten steps was taken: K = 80 %
            at_k.append(learner.model[1].weight.detach().clone())
            moments.append(
                learner.optimizer.state[learner.model[1].weight]["momentum_buffer"].clone()
            )

    learner.learn(data, watch)
    annealed = learner.model[1].weight.detach().clone()
    assert not torch.equal(annealed, at_k[0])  # what an evaluation sees

    first = []

    class Peek(type(learner.plugins[0])):
        def begin_step(self, host):
            super().begin_step(host)
            if not first:
                state = host.optimizer.state
                kept = state[host.model[1].weight]["momentum_buffer"].clone() if state else None
                first.append((host.model[1].weight.detach().clone(), kept))

    learner.plugins[0].__class__ = Peek
    found = rates(learner, data)
    assert torch.equal(first[0][0], at_k[0])
    assert first[0][1] is None if reset else torch.equal(first[0][1], moments[0])
    # Constant at once, then annealed again; step 8 is K.
    assert found[:8] == pytest.approx(0.055)
    assert found[9] == pytest.approx(0.01)


def test_annealed_weights_go_on_where_that_is_asked_or_something_was_forgotten():
    data = experience(samples_of([0, 1, 2, 3] * 10))
    learner = learner_of("lr-schedule", {"schedule": "infinite", "resume": "annealed"})
    learner.learn(data)
    assert learner.plugins[0].state_dict()["snapshot"] is None
    learner = learner_of("lr-schedule", {"schedule": "infinite"})
    learner.learn(data)
    assert learner.plugins[0].state_dict()["snapshot"] is not None
    gone = data.train.take(np.arange(2))
    learner.forget(ForgetRequest(name="f", kind="samples", samples=gone))
    assert learner.plugins[0].state_dict()["snapshot"] is None


# homeostatic ------------------------------------------------------------------------------------


class OneWeight(nn.Module):
    """Logits ``(0, w * (x - 1/2))`` of one pixel: label 1 is bright where w is positive."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(weight)))

    def forward(self, x):
        score = self.weight * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.zeros_like(score), score], 1)


class Still:
    """A host at one moment: gradient given, one sample in focus."""

    def __init__(self, *, weight, grad, y, logits, lr=1.0):
        self.model = OneWeight(weight)
        self.model.weight.grad = torch.tensor(float(grad))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.device, self.num_classes, self.num_current = "cpu", 2, 1
        self.y, self.logits = torch.tensor([y]), torch.tensor([logits])
        self.counted = 0

    def generator(self, purpose):
        return torch.Generator().manual_seed(sum(map(ord, purpose)))

    def count(self, forwards=0, backwards=0):
        self.counted += forwards


def rate_after(host, decision="vulnerable", window=((1.0, 1), (0.0, 0))):
    """Learning rate after one decision; bright is 1 and dark is 0 in the window."""
    options = {"window": len(window), "every": 1, "decision": decision, "step": 0.5}
    plugin = create_plugins("homeostatic", {"homeostatic": options})[0]
    plugin.attach(host)
    plugin.setup(host)
    plugin._x = torch.tensor([x for x, _ in window]).view(-1, 1, 1, 1)
    plugin._y = torch.tensor([y for _, y in window])
    before = host.model.weight.detach().clone()
    plugin.after_backward(host)
    assert torch.equal(host.model.weight, before)
    return host.optimizer.param_groups[0]["lr"]


def test_homeostatic_decision():
    # w = -1.2, g = -1: at rate 1 it becomes -0.2 (all of the window wrong but a tie), at 1.5 it
    # becomes 0.3 (all right), at .5 -0.7.
    up, down = [0.0, 1.0], [1.0, 0.0]
    case = {"weight": -1.2, "grad": -1.0}
    # Predicted 1 excites: 1.5 is tried and better; the true label says the direction.
    host = Still(**case, y=1, logits=up)
    assert rate_after(host) == pytest.approx(1.5)
    assert host.counted == 4  # two trials on a window of two
    assert rate_after(Still(**case, y=0, logits=up)) == pytest.approx(0.5)
    # Predicted 0 inhibits: .5 is tried and is not better; nothing happens, whatever the label.
    assert rate_after(Still(**case, y=1, logits=down)) == pytest.approx(1.0)
    # Greedy needs no class: of .5 and 1.5 the latter is better.
    host = Still(**case, y=0, logits=down)
    assert rate_after(host, "greedy") == pytest.approx(1.5)
    assert host.counted == 6
    # With the window the other way round the rate 1 is right already: stay.
    host = Still(**case, y=0, logits=down)
    assert rate_after(host, "greedy", ((1.0, 0), (0.0, 1))) == pytest.approx(1.0)


def test_homeostatic_random_is_a_coin_and_the_rate_has_a_floor():
    options = {"window": 1, "every": 1, "decision": "random", "step": 0.5}
    plugin = create_plugins("homeostatic", {"homeostatic": options})[0]
    host = Still(weight=1.0, grad=0.0, y=0, logits=[0.0, 1.0])
    plugin.setup(host)
    seen = set()
    for turn in range(20):
        plugin._x, plugin._y = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
        plugin._factor = 0.7
        host.generator = lambda purpose, turn=turn: torch.Generator().manual_seed(turn)
        plugin.after_backward(host)
        seen.add(round(plugin._factor, 6))
    assert seen == {0.7, 0.2}
    plugin._factor = 0.2
    while plugin._factor == 0.2:
        host.generator = lambda purpose: torch.Generator().manual_seed(int(torch.seed() % 1000))
        plugin.after_backward(host)
    assert plugin._factor == 1e-5
    assert host.counted == 0


def test_homeostatic_looks_every_tenth_sample_once_the_window_is_full():
    learner = learner_of("homeostatic", {"window": 20, "every": 10}, lr=0.5)
    counts = []
    learner.learn(
        experience(samples_of([0, 1, 2, 3] * 15)), lambda s: counts.append(s.forwards - 4)
    )
    # Twenty samples fill the window in five steps; a decision costs two passes over it.
    assert counts == [0, 0, 0, 0, 0, 40, 0, 40, 0, 0, 40, 0, 40, 0, 0]
    state = learner.plugins[0].state_dict()
    assert len(state["x"]) == len(state["y"]) == 20


@pytest.mark.parametrize("config", [{"momentum": 0.9}, {"optimizer": "adam"}])
def test_homeostatic_refuses_moments(config):
    learner = learner_of("homeostatic", **config)
    with pytest.raises(AdapterError, match="plain SGD"):
        learner.learn(experience(samples_of([0, 1, 2, 3])))


# curriculum -------------------------------------------------------------------------------------


def epochs_of(learner, data):
    """Places of the samples of each epoch, in the order of training."""
    seen = []

    def watch(step):
        if len(seen) == learner.epoch:
            seen.append([])
        seen[-1] += step.samples.positions[step.at].tolist()

    learner.learn(experience(data), watch)
    return seen


@pytest.mark.parametrize("options", [{}, {"score": "random"}, {"score": "easy-first"}])
def test_curriculum_keeps_the_budget(options):
    data = samples_of([0, 1, 2, 3] * 10)
    learner = learner_of("curriculum", options, epochs=2)
    seen = epochs_of(learner, data)
    assert [len(epoch) for epoch in seen] == [10, 20, 40, 10]
    assert all(len(set(epoch)) == len(epoch) for epoch in seen)
    assert sorted(seen[2]) == list(range(40))
    assert learner.step == 3 + 5 + 10 + 3  # as announced: schedules count on it


def test_curriculum_prefers_easy_samples():
    data = samples_of([0, 1, 2, 3] * 50)

    class Scored(nn.Module):
        """Certain of labels 0 and 1, wrong about the others."""

        def forward(self, x):
            return (x[:, 0, 0, :] > 0.5).float() * torch.tensor([20.0, 20, -20, -20])

    shares = {}
    for score in ("easy-first", "hard-first", "exponential", "random"):
        learner = learner_of("curriculum", {"score": score})
        learner.plugins[0].teacher = Scored()
        first = epochs_of(learner, data)[0]
        shares[score] = np.mean(data.labels[first] < 2)
    assert shares["easy-first"] == shares["exponential"] == 1.0
    assert shares["hard-first"] == 0.0
    assert 0.3 < shares["random"] < 0.7


def test_curriculum_trains_its_teacher_on_a_copy_and_says_what_it_cost():
    data = samples_of([0, 1, 2, 3] * 10)
    learner = learner_of("curriculum", {"score": "easy-first", "teacher_epochs": 3})
    plain = learner_of("curriculum", {"score": "easy-first"})
    counts = []
    learner.learn(experience(data), lambda step: counts.append((step.forwards, step.backwards)))
    # Three epochs and one pass of scores, said with the first step.
    assert counts[0] == (3 * 40 + 40 + len(data) // 10, 3 * 40 + len(data) // 10)
    assert counts[1] == (4, 4)
    before = [p.detach().clone() for p in plain.model.parameters()]
    plain.learn(experience(data), None)
    assert not all(map(torch.equal, before, plain.model.parameters()))


def test_curriculum_says_when_another_plugin_narrowed_the_epoch():
    data = samples_of([0, 1, 2, 3] * 10)
    learner = learner_of("curriculum", {"score": "easy-first"})

    class Narrow(type(learner.plugins[0]).__mro__[1]):
        def choose_epoch(self, host, samples):
            return samples.take(np.arange(12))

    learner.plugins = (Narrow(), *learner.plugins)
    with pytest.raises(AdapterError, match="scored 40 samples, the epoch has 12"):
        learner.learn(experience(data))
    with pytest.raises(AdapterError, match="must not be above"):
        create_plugins("curriculum", {"curriculum": {"start": 0.8, "end": 0.5}})
