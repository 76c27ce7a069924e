"""Every registered strategy, under each of its check options, lives a short life.

There is no list of names: a strategy is tested because it is there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual import Learner, LearnerConfig, Life, create_plugins, list_strategies, strategy_config
from continual.factory import strategies
from streams.clean import in_memory
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples, Task
from streams.single import CleanSource
from tta.errors import AdapterError

TASKS, PER_TASK, SIDE = 3, 20, 8
# Steps of the second experience after which a life is killed: within an epoch, at its end.
MOMENTS = (2, 3)
# These refuse an optimizer with momentum; test_schedules.py shows the message.
PLAIN_SGD = {"homeostatic"}
CASES = [
    pytest.param(name, options, id=f"{name}-{number}")
    for name in list_strategies()
    for number, options in enumerate(strategies.get(name).check_options)
]


class Net(nn.Module):
    """BatchNorm, dropout and a linear classifier; or attention blocks."""

    def __init__(self, *, attention: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4 if attention else 3, stride=4 if attention else 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if attention else None
        self.norm: nn.Module = nn.LayerNorm(8) if attention else nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, 2 * TASKS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if self.attention is not None:
            h = h.flatten(2).mT
            h = self.norm(h + self.attention(h, h, h, need_weights=False)[0]).mean(1)
        else:
            h = self.norm(h).relu().mean((2, 3))
        logits: Tensor = self.head(self.drop(h))
        return logits


@lru_cache
def stream() -> LearningStream:
    """Three tasks of two colours each; one request to forget after the second."""
    draw = np.random.default_rng(0)
    sides = []
    for size in (PER_TASK, 10):
        labels = np.repeat(np.arange(2 * TASKS), size // 2)
        colours = np.random.default_rng(1).uniform(40, 215, size=(2 * TASKS, 1, 1, 3))
        noise = draw.normal(0, 15, size=(len(labels), SIDE, SIDE, 3))
        images = (colours[labels] + noise).clip(0, 255).astype(np.uint8)
        clean = in_memory(images, labels, name="colours", num_classes=2 * TASKS)
        tasks = labels // 2
        sides.append(
            Samples(
                source=CleanSource(clean=clean),
                positions=np.arange(len(labels)),
                labels=labels,
                tasks=tasks,
            )
        )
    train, test = sides
    tasks_ = tuple(
        Task(
            name=f"task-{t}",
            train=train.take(np.flatnonzero(train.tasks == t)),
            test=test.take(np.flatnonzero(test.tasks == t)),
            classes=(2 * t, 2 * t + 1),
        )
        for t in range(TASKS)
    )
    items: list[Experience | ForgetRequest] = [
        Experience(name=t.name, train=t.train, task=n) for n, t in enumerate(tasks_)
    ]
    items.insert(
        2,
        ForgetRequest(name="forget", kind="samples", samples=tasks_[0].train.take(np.arange(6))),
    )
    return LearningStream(
        name="colours",
        setting="test",
        tasks=tasks_,
        items=tuple(items),
        num_classes=2 * TASKS,
        seed=0,
        image_shape=(3, SIDE, SIDE),
    )


class KilledError(Exception):
    """Raised where a life is to end early."""


class Watch:
    """Keeps what is said, and the saved state of each moment at which a life may be killed.

    Args:
        until: The moment (item, step) at which to kill it; ``None`` lets it live.
    """

    def __init__(self, until: tuple[int, int] | None = None) -> None:
        self.until = until
        self.saved: dict[tuple[int, int], bytes] = {}
        self.losses: list[float] = []

    def learned(self, step: Any, experience: Experience, seconds: float) -> None:
        self.losses.append(step.loss)
        assert step.x.shape[0] == step.y.shape[0] == step.logits.shape[0] == len(step.at)

    def adapted(self, *_: object) -> None:
        raise AssertionError("there is no segment")

    def forgot(self, request: ForgetRequest, server: str | None, seconds: float) -> None:
        pass

    def evaluated(self, evaluation: Any) -> None:
        pass

    def settled(self, life: Life) -> None:
        moment = (life.item, life.learner.step_in_experience)
        if moment[1] == 0 or (moment[0] == 1 and moment[1] in MOMENTS):
            file = io.BytesIO()
            self.last = life.state_dict()
            torch.save(self.last, file)
            self.saved[moment] = file.getvalue()
        if moment == self.until:
            raise KilledError


# What a strategy may refuse: a model without attention, an optimiser with moments.
WORLDS = ((False, 0.5), (True, 0.5), (False, 0.0))


def born(name: str, options: Mapping[str, Any], world: tuple[bool, float]) -> Life:
    """A life at its start; the model's weights are always the same."""
    attention, momentum = world
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(attention=attention)
    # A frozen parameter stays as it is, whatever the strategy.
    model.stem.bias.requires_grad_(False)
    config = LearnerConfig(
        lr=0.1,
        momentum=momentum,
        weight_decay=1e-3,
        batch_size=8,
        epochs=2,
        augment="crop-flip",
    )
    learner = Learner(model, 2 * TASKS, config, create_plugins(name, {name: options}))
    return Life(stream(), learner)


@lru_cache
def first_world(name: str) -> tuple[bool, float]:
    """Where the strategy runs; it refuses the others before the first step."""
    for world in WORLDS:
        try:
            born(name, {}, world).learner._setup()
        except AdapterError:
            continue
        return world
    raise AssertionError(f"{name} runs on none of {WORLDS}")


def weights(life: Life) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in life.learner.model.state_dict().items()}


def flat(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a state, with the way to it."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from flat(value, f"{path}/{key}")
    elif isinstance(state, (list, tuple)):
        for number, value in enumerate(state):
            yield from flat(value, f"{path}/{number}")
    else:
        yield path, state


def loaded(saved: bytes) -> Any:
    return torch.load(io.BytesIO(saved), weights_only=True)


def differences(left: Any, right: Any) -> list[str]:
    """Where two states are not the same, bit for bit."""
    a, b = dict(flat(left)), dict(flat(right))
    found = [*(a.keys() ^ b.keys())]
    for path in a.keys() & b.keys():
        one, two = a[path], b[path]
        same = torch.equal(one, two) if isinstance(one, Tensor) else one == two
        if not same:
            found.append(path)
    return sorted(found)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_conformance(name: str, options: Mapping[str, Any]) -> None:
    world = first_world(name)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    life = born(name, options, world)
    frozen, first = (weights(life)[name] for name in ("stem.bias", "head.weight"))
    watch = Watch()
    life.run(watch)
    ends = weights(life)

    # It learns, to finite weights, and moves nothing that is frozen.
    assert watch.losses[5] < watch.losses[0]
    assert np.isfinite(watch.losses).all()
    assert all(value.isfinite().all() for value in ends.values())
    assert torch.equal(ends["stem.bias"], frozen)
    assert not torch.equal(ends["head.weight"], first)

    # The state is plain: no object of ours, nothing that a restricted load refuses.
    plain = (int, float, str, bool, type(None), Tensor)
    odd = [path for path, leaf in flat(life.learner.state_dict()) if not isinstance(leaf, plain)]
    assert not odd

    # Killed in an experience, and at the border of each item: fresh objects go on from there to
    # the next moment and are then in the state in which the first life was.
    moments = list(watch.saved)
    assert moments == [(0, 0), (1, 0), *((1, m) for m in MOMENTS), (2, 0), (3, 0), (4, 0)]
    state = loaded(watch.saved[moments[0]])
    for here, there in pairwise(moments):
        again = born(name, options, world)
        again.load_state_dict(state)
        rest = Watch(until=there)
        with pytest.raises(KilledError):
            again.run(rest)
        state = loaded(watch.saved[there])
        differs = differences(state, rest.last)
        assert not differs, f"resumed at {here}, not the same at {there}: {differs}"

    # No global draw.
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


@pytest.mark.parametrize(
    "names",
    [
        "refresh+der-pp",
        "refresh+ewc+replay",
        "pred-kd+feat-kd+l2-anchor",
        "power-law-replay+lwf+a-gem",
    ],
)
def test_compositions(names: str) -> None:
    test_conformance(names, {})


@pytest.mark.parametrize("name", list_strategies())
def test_options_say_what_they_are(name: str) -> None:
    fields = strategy_config(name).__dataclass_fields__
    assert all(field.metadata.get("doc") for field in fields.values())
    assert strategies.summary(name).partition(":")[0], f"{name} has no first line"


def test_a_strategy_that_forgets_its_state_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = strategies.get("replay")
    monkeypatch.setattr(
        cls, "state_dict", lambda self: {"memory": type(self)().memory.state_dict()}
    )
    with pytest.raises(AssertionError, match="resumed at"):
        test_conformance("replay", {"size": 20})
