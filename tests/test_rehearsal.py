"""Buffers, and the strategies that learn old samples again."""

from __future__ import annotations

import io
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual import Learner, LearnerConfig, Plugin, create_plugins
from continual.buffers import ClassBalanced, Reservoir
from continual.passes import untouched
from continual.rehearsal import requested
from continual.strategies.a_gem import AGem, project
from continual.strategies.der_pp import DerPp
from continual.strategies.power_law_replay import PowerLawReplay
from streams.clean import in_memory
from streams.learning_types import Experience, ForgetRequest, Samples
from streams.single import CleanSource
from tta.errors import AdapterError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(size: int, classes: int = 2, seed: int = 0) -> Samples:
    """Random 4x4 images; the labels go round."""
    labels = np.arange(size) % classes
    images = np.random.default_rng(seed).integers(0, 256, (size, 4, 4, 3), dtype=np.uint8)
    clean = in_memory(images, labels, name="noise", num_classes=classes)
    everything = np.arange(size)
    return Samples(
        source=CleanSource(clean=clean),
        positions=everything,
        labels=labels,
        tasks=np.zeros(size, dtype=np.int64),
    )


def net(classes: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes)
        )


class Spy(Plugin):
    """Writes down what the loop shows it just before the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, int]] = []
        self.labels: list[Tensor] = []
        self.first: list[dict[str, Tensor]] = []

    def begin_step(self, host: Any) -> None:
        self.rows.append((host.num_current, len(host.x)))
        self.labels.append(host.y.clone())
        if host.step_in_experience == 0:
            self.first.append({n: v.clone() for n, v in host.model.state_dict().items()})


def learner(names: str, options: dict[str, Any] | None = None, **config: Any) -> Learner:
    plugins = [*create_plugins(names, {names: options or {}}), Spy()]
    config = {"lr": 0.05, "batch_size": 8, **config}
    return Learner(net(config.pop("classes", 2)), 2, LearnerConfig(**config), plugins)


def experience(data: Samples) -> Experience:
    return Experience(name="e", train=data, task=0)


# Buffers ----------------------------------------------------------------------------------------


def test_reservoir_follows_algorithm_r():
    buffer = Reservoir(3)
    buffer.add(seeded(4), v=torch.arange(10))
    draws = torch.rand(10, generator=seeded(4), dtype=torch.float64).tolist()
    by_hand = [0, 1, 2]
    for seen, draw in enumerate(draws[3:], start=4):
        place = int(draw * seen)
        if place < 3:
            by_hand[place] = seen - 1
    assert buffer.columns["v"].tolist() == by_hand
    assert buffer.seen == 10


def test_reservoir_keeps_every_row_equally_often():
    kept: Counter[int] = Counter()
    runs = 1500
    generator = seeded()
    for _ in range(runs):
        buffer = Reservoir(4)
        for part in torch.arange(16).split(5):
            buffer.add(generator, v=part)
        kept.update(buffer.columns["v"].tolist())
    spread = math.sqrt(runs * 0.25 * 0.75)
    assert sum(kept.values()) == 4 * runs
    assert all(abs(kept[row] - runs / 4) < 4 * spread for row in range(16))


def test_reservoir_stays_uniform_after_a_drop():
    """20 rows, the first 10 dropped, 20 more: of the 30 left each is there equally often."""
    kept: Counter[int] = Counter()
    runs = 1500
    generator = seeded()
    for _ in range(runs):
        buffer = Reservoir(6)
        buffer.add(generator, v=torch.arange(20))
        buffer.drop(lambda columns: columns["v"] < 10)
        assert (buffer.columns["v"] >= 10).all()
        buffer.add(generator, v=torch.arange(20, 40))
        assert len(buffer) <= 6
        kept.update(buffer.columns["v"].tolist())
    old = sum(kept[row] for row in range(10, 20)) / (10 * runs)
    new = sum(kept[row] for row in range(20, 40)) / (20 * runs)
    assert abs(old - 0.2) < 0.015
    assert abs(new - 0.2) < 0.015


def test_class_balanced_gives_up_rows_of_the_largest_class():
    buffer = ClassBalanced(12)
    for label, size in ((0, 100), (1, 10), (2, 3)):
        buffer.add(seeded(label), y=torch.full((size,), label))
    # 12 | 6 6 | then each 2 takes the place of a 0, a 1, a 0.
    assert Counter(buffer.columns["y"].tolist()) == {0: 4, 1: 5, 2: 3}


def test_class_balanced_is_uniform_within_a_class():
    kept: Counter[int] = Counter()
    generator = seeded()
    for _ in range(600):
        buffer = ClassBalanced(4)
        y = torch.tensor([0] * 10 + [1] * 10)
        buffer.add(generator, y=y, v=torch.arange(20))
        kept.update(buffer.columns["v"].tolist())
    assert all(abs(kept[row] - 600 * 0.2) < 4 * math.sqrt(600 * 0.16) for row in range(10))


def test_gdumb_sampler_takes_the_first_until_the_share_is_reached():
    buffer = ClassBalanced(6, within="first")
    y = torch.tensor([0] * 6 + [1] * 4 + [2])
    buffer.add(seeded(), y=y, v=torch.arange(11))
    assert Counter(buffer.columns["y"].tolist()) == {0: 2, 1: 3, 2: 1}
    ones = buffer.columns["v"][buffer.columns["y"] == 1]
    assert sorted(ones.tolist()) == [6, 7, 8]  # 9 came when the share of 3 was there


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
def test_a_saved_buffer_goes_on_as_the_first(kind: Any):
    def fill(buffer: Any, start: int) -> None:
        rows = torch.arange(start, start + 30)
        buffer.add(seeded(start), y=rows % 3, v=rows)

    one, two = kind(7), kind(7)
    fill(one, 0)
    one.drop(lambda columns: columns["v"] % 4 == 0)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    two.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for buffer in (one, two):
        fill(buffer, 30)
        buffer.drop(buffer.columns["y"] == 1)
        fill(buffer, 60)
    assert torch.equal(one.columns["v"], two.columns["v"])
    drawn = [buffer.draw(4, seeded(5))["v"].tolist() for buffer in (one, two)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_images_are_kept_as_bytes_where_that_loses_nothing():
    buffer = Reservoir(6)
    x = torch.randint(0, 256, (2, 3, 4, 4), generator=seeded()).float() / 255
    buffer.add(seeded(), x=x)
    assert buffer.columns["x"].dtype == torch.uint8
    assert buffer.rows._columns["x"].shape[0] == 6  # allocated once, never more
    other = x + 1e-3  # no bytes: the whole column gives them up
    buffer.add(seeded(), x=other)
    assert torch.equal(buffer.columns["x"], torch.cat([x, other]))
    buffer.add(seeded(), x=x)
    assert torch.equal(buffer.columns["x"][4:], x)


def test_buffers_say_what_does_not_fit():
    buffer = Reservoir(3)
    buffer.add(seeded(), v=torch.zeros(2, 5))
    with pytest.raises(AdapterError, match="one buffer holds one kind"):
        buffer.add(seeded(), v=torch.zeros(2, 4))
    with pytest.raises(AdapterError, match="has the columns"):
        buffer.add(seeded(), w=torch.zeros(2, 5))
    with pytest.raises(AdapterError, match="belong together"):
        buffer.add(seeded(), v=torch.zeros(2, 5), w=torch.zeros(1))
    with pytest.raises(AdapterError, match="holds nothing"):
        Reservoir(0)


def test_untouched_leaves_no_trace():
    model = nn.Sequential(net(), nn.Dropout(0.5)).train()
    x = torch.rand(6, 3, 4, 4, generator=seeded())
    before = {n: v.clone() for n, v in model.state_dict().items()}
    random = torch.get_rng_state()
    with untouched(model, seeded(3)):
        one = model(x)
    with untouched(model, seeded(3)):
        two = model(x)
    with untouched(model, mode="eval"):
        assert not model[1].training
        assert not torch.equal(model(x), one)
    assert model[1].training
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    # The step's own forward, with BatchNorm in eval mode, can still be sent back.
    model[0].eval()
    loss = model(x).sum()
    with untouched(model, seeded()):
        model(x)
    loss.backward()


# Strategies -------------------------------------------------------------------------------------


def test_replay_adds_as_many_rows_as_are_new():
    made = learner("replay", {"size": 12}, batch_size=8)
    made.learn(experience(samples(24)))
    spy = made.plugins[-1]
    assert spy.rows == [(8, 8), (8, 16), (8, 16)]
    assert len(made.plugins[0].memory) == 12


def test_replay_by_replacement_keeps_the_size_of_a_step():
    made = learner("replay", {"size": 12, "fraction": 0.25}, batch_size=8)
    data = samples(32, classes=2)
    first, second = data.take(np.arange(16)), data.take(np.arange(16, 32))
    counted = []
    made.learn(experience(first), lambda step: counted.append(step.forwards))
    made.learn(experience(second), lambda step: counted.append(step.forwards))
    # Nothing older in the first experience; then two of eight rows are.
    assert made.plugins[-1].rows == [(8, 8), (8, 8), (6, 8), (6, 8)]
    assert counted == [8, 8, 8, 8]


def test_rows_of_a_forgotten_sample_are_dropped():
    data = samples(24)
    made = learner("replay", {"size": 24})
    made.learn(experience(data))
    memory = made.plugins[0].memory
    gone = data.take(np.arange(10))
    made.forget(ForgetRequest(name="f", kind="samples", samples=gone))
    assert sorted(memory.buffer.columns["key"].tolist()) == list(range(10, 24))
    # Without keys the pixels tell.
    columns = dict(memory.buffer.columns)
    columns["key"] = torch.full_like(columns["key"], -1)
    mask = requested(columns, data.take(np.arange(8, 12)))
    assert sorted(memory.buffer.columns["key"][mask].tolist()) == [10, 11]


def test_der_pp_is_its_formula():
    plugin = DerPp(DerPp.Config(size=4, alpha=0.1, beta=0.5))
    host: Any = SimpleNamespace(
        model=nn.Flatten(),  # logits are the pixels
        device="cpu",
        num_current=2,
        raw=torch.eye(2).view(2, 2, 1, 1),
        y=torch.tensor([0, 1]),
        keys=None,
        experience=0,
        logits=torch.zeros(2, 2),
        generator=lambda purpose: seeded(),
        augment=lambda x, purpose: x,
        count=lambda forwards, backwards: counted.append((forwards, backwards)),
    )
    counted: list[tuple[int, int]] = []
    assert plugin.add_loss(host) is None
    plugin.after_step(host)
    loss = plugin.add_loss(host)
    # MSE of (1, 0, 0, 1) from 0 is 1/2; the right class is 1 above the other.
    assert float(loss) == pytest.approx(0.1 * 0.5 + 0.5 * math.log(1 + math.exp(-1)))
    assert counted == [(2, 2), (2, 2)]


@pytest.mark.parametrize("name", ["der", "der-pp"])
def test_der_keeps_logits_from_before_the_update_and_raw_images(name: str):
    made = learner(name, {"size": 50}, augment="crop-flip")
    data = samples(16)
    steps = []
    made.learn(experience(data), steps.append)
    columns = made.plugins[0].memory.buffer.columns
    assert columns["x"].dtype == torch.uint8
    for step in steps:
        for row, key in enumerate(step.samples.keys[step.at]):
            held = columns["key"] == int(key)
            assert torch.equal(columns["logits"][held][0], step.logits[row])
            assert torch.equal(columns["x"][held][0], data.images(np.array([key]))[0])


def test_der_takes_logits_anew_after_a_request_to_forget():
    made = learner("der", {"size": 50})
    data = samples(16)
    made.learn(experience(data))
    made.forget(ForgetRequest(name="f", kind="samples", samples=data.take(np.arange(4))))
    columns = made.plugins[0].memory.buffer.columns
    assert len(columns["y"]) == 12
    made.model.eval()
    now = made.model(columns["x"].float() / 255)
    torch.testing.assert_close(columns["logits"], now)


def test_a_gem_takes_out_the_part_against_the_buffer():
    gradients = [torch.tensor([1.0, -1.0]), torch.tensor([[2.0]])]
    reference = [torch.tensor([0.0, 3.0]), torch.tensor([[1.0]])]
    # g.r = -3 + 2 = -1, r.r = 10: g + r / 10.
    assert project(gradients, reference)
    torch.testing.assert_close(gradients[0], torch.tensor([1.0, -0.7]))
    torch.testing.assert_close(gradients[1], torch.tensor([[2.1]]))
    dot = sum(float((g * r).sum()) for g, r in zip(gradients, reference, strict=True))
    assert dot == pytest.approx(0, abs=1e-6)
    assert not project(gradients, [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])])


def test_a_gem_measures_against_earlier_experiences():
    calls = []

    class Watched(AGem):
        name = "a-gem"

        def after_backward(self, host: Any) -> None:
            before = [p.grad.clone() for p in host.model.parameters()]
            buffers = [b.clone() for b in host.model.buffers()]
            super().after_backward(host)
            after = [p.grad for p in host.model.parameters()]
            changed = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            calls.append((host.experience, changed))
            assert all(map(torch.equal, buffers, host.model.buffers()))

    data = samples(32)
    flipped = data.take(np.arange(16)).relabelled(1 - data.labels[:16])
    made = Learner(net(), 2, LearnerConfig(lr=0.3, batch_size=8, epochs=3), [Watched()])
    made.learn(experience(data.take(np.arange(16))))
    made.learn(experience(flipped))
    assert not any(changed for number, changed in calls if number == 0)
    assert any(changed for number, changed in calls if number == 1)


def test_gdumb_starts_from_the_first_weights_on_a_balanced_buffer():
    made = learner("gdumb", {"size": 8, "epochs": 2})
    data = samples(40, classes=4)
    made.num_classes = 4
    made.model[-1] = nn.Linear(16, 4)
    made.optimizer = made._build_optimizer()
    start = {n: v.clone() for n, v in made.model.state_dict().items()}
    old, new = (data.take(np.flatnonzero(data.labels // 2 == half)) for half in (0, 1))
    made.learn(experience(old))
    assert Counter(made.data.labels.tolist()) == {0: 4, 1: 4}
    made.learn(experience(new))
    assert Counter(made.data.labels.tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert (data.labels[made.data.positions] == made.data.labels).all()
    assert made.step == 4
    for first in made.plugins[-1].first:
        assert all(torch.equal(v, start[n]) for n, v in first.items())


def past_of(parts: list[Samples]) -> Any:
    return SimpleNamespace(past=parts)


def phases(number: int, size: int) -> list[Samples]:
    labels = np.zeros(number * size, dtype=np.int64)
    pixels = np.broadcast_to(np.zeros((1, 1, 1, 3), dtype=np.uint8), (number * size, 1, 1, 3))
    clean = in_memory(pixels, labels, name="none", num_classes=1, digest="none")
    source = CleanSource(clean=clean)
    return [
        Samples(
            source=source,
            positions=np.arange(task * size, (task + 1) * size),
            labels=labels[:size],
            tasks=np.full(size, task),
        )
        for task in range(number)
    ]


def test_power_law_replay_has_the_papers_restricted_counts():
    *past, new = phases(10, 57927)
    plugin = PowerLawReplay(PowerLawReplay.Config(mode="position-power", budget=0.1))
    chosen = plugin.choose(past_of(past), new)
    expected = [138, 203, 288, 396, 533, 703, 910, 1160, 1458, 57927]
    assert np.bincount(chosen.tasks).tolist() == expected
    assert len(np.unique(chosen.keys)) == len(chosen)  # without replacement
    again = plugin.choose(past_of(past), new)
    assert np.array_equal(chosen.keys, again.keys)


def test_power_law_replay_draws_anew_in_each_phase_and_from_what_is_kept():
    parts = phases(4, 100)
    plugin = PowerLawReplay(PowerLawReplay.Config(mode="uniform", budget=0.5, keep=30))
    drawn = [plugin.choose(past_of(parts[:phase]), parts[phase]) for phase in range(4)]
    of_first = [set(part.keys[part.tasks == 0].tolist()) for part in drawn[1:]]
    assert [len(keys) for keys in of_first] == [30, 25, 16]  # never more than is kept
    assert of_first[1] != of_first[2]
    assert of_first[1] | of_first[2] <= of_first[0]
    # A forgotten sample is not there to be drawn.
    left = [p.take(np.flatnonzero(~np.isin(p.keys, list(of_first[0])[:20]))) for p in parts]
    fresh = PowerLawReplay(plugin.config)
    fresh.load_state_dict(plugin.state_dict())
    assert len(fresh.kept) == 4
    assert (fresh.choose(past_of(left[:3]), parts[3]).tasks == 0).sum() == 10


def test_power_law_replay_says_which_options_go_together():
    with pytest.raises(AdapterError, match="needs a budget"):
        PowerLawReplay(PowerLawReplay.Config(mode="uniform"))


def test_a_plug_in_does_not_change_what_the_others_draw():
    data = samples(40)
    kept = []
    for names in ("replay", "refresh+replay"):
        plugins = create_plugins(names, {"refresh": {"delta": 0.0}, "replay": {"size": 10}})
        made = Learner(net(), 2, LearnerConfig(lr=0.05, batch_size=8), plugins)
        made.learn(experience(data.take(np.arange(20))))
        made.learn(experience(data.take(np.arange(20, 40))))
        kept.append((plugins[-1].memory.buffer.columns["key"], made.model.state_dict()))
    assert torch.equal(kept[0][0], kept[1][0])
    assert all(torch.equal(v, kept[1][1][n]) for n, v in kept[0][1].items())


def test_replay_remembers_what_naive_forgets():
    """Two experiences with classes of their own: the first is still known, with a buffer."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30]])
    pixels = (colours[labels][:, None, None] + rng.normal(0, 10, (200, 4, 4, 3))).clip(0, 255)
    clean = in_memory(pixels.astype(np.uint8), labels, name="c", num_classes=4)
    data = Samples(
        source=CleanSource(clean=clean),
        positions=np.arange(200),
        labels=labels,
        tasks=labels // 2,
    )
    found = {}
    for names in ("naive", "replay", "der-pp", "gdumb"):
        plugins = create_plugins(names, {"gdumb": {"size": 100}})
        made = Learner(net(4), 4, LearnerConfig(lr=0.3, batch_size=10, epochs=4), plugins)
        for task in (0, 1):
            made.learn(experience(data.take(np.flatnonzero(data.tasks == task))))
        made.model.eval()
        old = np.flatnonzero(data.tasks == 0)
        x, y = data.batch(old)
        found[names] = float((made.model(x).argmax(1) == y).float().mean())
    assert found["naive"] <= 0.5, found
    assert min(found["replay"], found["der-pp"], found["gdumb"]) > 0.9, found
