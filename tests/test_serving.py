"""Serving: readers beside a writer, steps that fail and leave nothing, a background worker."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tta
from tta.adapter import Adapter
from tta.config import AdapterConfig
from tta.errors import AdapterError
from tta.restore import RestorePoint
from tta.serving import Answer, Server, Step

CLASSES = 5
METHODS: dict[str, dict[str, Any]] = {
    "tent": {"lr": 1e-2},
    "eata": {"lr": 1e-2, "entropy_margin": 1.5, "redundancy_margin": 1.5},
    "cotta": {"num_views": 2, "lr": 1e-2},
    "sar": {"lr": 1e-2, "entropy_margin": 1.5},
    "rotta": {"capacity": 6, "update_every": 4},
    "t3a": {"supports": 3},
    "norm": {"statistics": "ema"},
}


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )


def images(key: int, count: int = 4) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(key))


def make(method: str, **options: Any) -> Adapter:
    adapter = tta.wrap(make_model(), method, **{**METHODS.get(method, {}), **options})
    if adapter.needs.source_data:
        adapter.fit_source([images(100), images(101)])
    return adapter


def same(left: Any, right: Any) -> bool:
    """Equality bit for bit through containers."""
    if isinstance(left, Tensor):
        return (
            isinstance(right, Tensor)
            and left.dtype == right.dtype
            and torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right)


def structure(adapter: Adapter) -> list[Any]:
    """Which tensors stand where, how many hooks, which modes."""
    return [
        (
            {k: id(v) for k, v in module._parameters.items()},
            {k: id(v) for k, v in module._buffers.items()},
            len(module._forward_pre_hooks),
            len(module._forward_hooks),
            module.training,
            getattr(module, "moving", None),
            [p.grad is None for p in module.parameters()],
        )
        for module in adapter.modules()
    ]


class Fault(TorchDispatchMode):
    """Raises ``error`` once, before or after the ``at``-th operation of torch from now on."""

    def __init__(self, at: int = -1, error: BaseException | None = None) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        done = func(*args, **(kwargs or {}))
        if self.count == self.at:
            assert self.error is not None
            raise self.error
        return done


# Readers and the writer -----------------------------------------------------------------------


def serve_and_check(method: str, requests: int, readers: int = 1) -> int:
    """Requests during adaptation; each equals that of its committed state. Versions seen."""
    adapter = make(method)
    server = Server(adapter, history=10)
    kept = {0: adapter.state_dict()}
    server.listeners.append(lambda step: kept.update({step.version: adapter.state_dict()}))
    answers: list[list[tuple[int, Answer]]] = [[] for _ in range(readers)]

    def read(mine: list[tuple[int, Answer]], first: int) -> None:
        keys = range(first, requests, readers)
        mine.extend((key, server.predict(images(key, 1 + key % 3))) for key in keys)

    threads = [threading.Thread(target=read, args=(a, i)) for i, a in enumerate(answers)]
    for thread in threads:
        thread.start()
    step = 0
    while any(thread.is_alive() for thread in threads):
        server.adapt(images(step, 1 + step % 4))  # ragged, and of one
        step += 1
    given = [pair for mine in answers for pair in mine]
    assert len(given) == requests
    for mine in answers:
        versions = [answer.version for _, answer in mine]
        assert versions == sorted(versions)
    by_version: dict[int, list[tuple[int, Answer]]] = {}
    for key, answer in given:
        by_version.setdefault(answer.version, []).append((key, answer))
    other = make(method)
    for version, pairs in by_version.items():
        other.load_state_dict(kept[version])
        for key, answer in pairs:
            assert torch.equal(answer.logits, other.predict(images(key, 1 + key % 3)))
    return len(by_version)


@pytest.mark.parametrize("method", ["tent", "cotta", "t3a", "rotta"])
def test_every_answer_is_that_of_a_committed_state(method):
    assert serve_and_check(method, requests=60) > 1


def test_several_readers():
    assert serve_and_check("tent", requests=60, readers=3) > 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tent", "t3a"])
def test_ten_thousand_requests_during_adaptation(method):
    assert serve_and_check(method, requests=10_000) > 100


class Halting(Adapter):
    """Changes half of its weights, waits to be told, changes the rest."""

    name = "halting"
    half, go = threading.Event(), threading.Event()

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(AdapterConfig):
        """Nothing of its own."""

    def setup(self) -> None:
        self.model.requires_grad_(True)

    def adapt(self, x: Tensor) -> Tensor:
        weights = list(self.model.parameters())
        with torch.no_grad():
            for w in weights[: len(weights) // 2]:
                w.add_(1)
            self.half.set()
            assert self.go.wait(60)
            for w in weights[len(weights) // 2 :]:
                w.add_(1)
            return self.logits(x)


def test_an_answer_does_not_wait_for_an_update_and_sees_none_of_it():
    with Server(Halting(make_model())) as server:
        before = server.predict(images(1))
        future = server.submit(images(0))
        assert Halting.half.wait(60)
        during = server.predict(images(1))
        Halting.go.set()
        assert future is not None
        assert future.result(60).version == 1
        after = server.predict(images(1))
    assert (before.version, during.version, after.version) == (0, 0, 1)
    assert torch.equal(during.logits, before.logits)
    assert not torch.equal(after.logits, before.logits)


def test_steps_equal_those_of_the_adapter_alone():
    alone, server = make("tent"), Server(make("tent"))
    for key, count in enumerate((4, 1, 3, 1)):
        step = server.adapt(images(key, count))
        assert torch.equal(step.logits, alone(images(key, count)))
        assert step.version == server.version == key + 1
        assert step.report == alone.report
        assert torch.equal(server.predict(images(9, 1)).logits, alone.predict(images(9, 1)))


def test_a_windowed_adapter_and_a_layer_with_its_own_statistics():
    kind: dict[str, Any] = {"norm": "unmix-tns", "window": 3}
    alone = tta.wrap(make_model(), "tent", **kind)
    server = Server(tta.wrap(make_model(), "tent", **kind))
    for key in range(5):
        assert torch.equal(server.adapt(images(key, 1)).logits, alone(images(key, 1)))
        assert torch.equal(server.predict(images(9)).logits, alone.predict(images(9)))


def test_readers_share_what_no_step_changes():
    adapter = make("tent")
    server = Server(adapter)
    twin = server._reader.adapter
    for (name, mine), theirs in zip(adapter.named_parameters(), twin.parameters(), strict=True):
        assert (mine is theirs) == (not mine.requires_grad), name


def test_inside_inference_mode():
    plain, inside = Server(make("t3a")), Server(make("t3a"))
    for key in range(3):
        step, answer = plain.adapt(images(key)), plain.predict(images(9))
        with torch.inference_mode():
            assert torch.equal(inside.adapt(images(key)).logits, step.logits)
            assert torch.equal(inside.predict(images(9)).logits, answer.logits)


# Steps that fail --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_fails_anywhere_leaves_nothing_behind(method):
    adapter, clean = make(method), make(method)
    server = Server(adapter)
    for key in range(2):
        server.adapt(images(key))
        clean(images(key))
    x = images(2)
    with Fault() as whole:
        server.adapt(x)
    clean(x)
    x = images(3)
    errors = [KeyboardInterrupt(), torch.cuda.OutOfMemoryError("no memory"), RuntimeError("bug")]
    points = sorted({1 + round(i * (whole.count - 1) / 24) for i in range(25)})
    for turn, at in enumerate(points):
        state, built, stats = adapter.state_dict(), structure(adapter), server.stats()
        answer = server.predict(images(9))
        error = errors[turn % len(errors)]
        with Fault(at, error), pytest.raises(type(error)) as caught:
            server.adapt(x)
        assert caught.value is error
        assert same(adapter.state_dict(), state), f"operation {at} of {whole.count}"
        assert structure(adapter) == built, f"operation {at} of {whole.count}"
        again = server.predict(images(9))
        assert torch.equal(again.logits, answer.logits)
        assert again.version == answer.version
        assert server.stats()["failed"] == stats["failed"] + 1
    assert torch.equal(server.adapt(images(3)).logits, clean(images(3)))
    assert torch.equal(server.adapt(images(4)).logits, clean(images(4)))
    assert same(adapter.state_dict(), clean.state_dict())


@pytest.mark.parametrize("where", ["loss", "backward", "before step", "after step", "commit"])
@pytest.mark.parametrize("method", ["tent", "eata", "cotta", "sar", "rotta"])
def test_a_step_that_fails_at_a_named_place(method, where, monkeypatch):
    from torch.optim import optimizer

    adapter, clean = make(method), make(method)
    server = Server(adapter)
    server.adapt(images(0))
    clean(images(0))
    state = adapter.state_dict()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError(where)

    with monkeypatch.context() as patch:
        handle = None
        if where == "loss":
            patch.setattr(torch, "log_softmax", fail)
            patch.setattr(Tensor, "log_softmax", fail)
        elif where == "backward":
            backward = Tensor.backward
            patch.setattr(Tensor, "backward", lambda *a, **k: (backward(*a, **k), fail()))
        elif where == "commit":
            patch.setattr(RestorePoint, "__init__", fail)
        else:
            register = getattr(
                optimizer,
                f"register_optimizer_step_{'pre' if where == 'before step' else 'post'}_hook",
            )
            handle = register(fail)
        try:
            with pytest.raises(MemoryError, match=where):
                server.adapt(images(1))
        finally:
            if handle is not None:
                handle.remove()
    assert same(adapter.state_dict(), state)
    assert torch.equal(server.adapt(images(1)).logits, clean(images(1)))
    assert same(adapter.state_dict(), clean.state_dict())


@pytest.mark.parametrize("method", ["cotta", "t3a", "tent", "norm"])
def test_an_answer_that_fails_anywhere_leaves_the_next_right(method):
    options = {"norm": {"statistics": "alpha"}}.get(method, {})
    server = Server(make(method, **options), source=make_model())
    server.adapt(images(0))
    x, y = images(9), images(8)
    answer, built = server.predict(x), structure(server._reader.adapter)
    with Fault() as whole:
        server.predict(x)
    for at in range(1, whole.count + 1):
        with Fault(at, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            server.predict(y)
        assert structure(server._reader.adapter) == built, at
        again = server.predict(x)
        assert torch.equal(again.adapted, answer.adapted), at
        assert torch.equal(again.logits, answer.logits), at


def test_a_way_back_that_is_interrupted_is_taken_again(monkeypatch):
    adapter, clean = make("tent"), make("tent")
    server = Server(adapter)
    server.adapt(images(0))
    clean(images(0))
    restore = RestorePoint.restore

    def interrupted(self: RestorePoint) -> None:
        monkeypatch.setattr(RestorePoint, "restore", restore)
        raise KeyboardInterrupt

    monkeypatch.setattr(RestorePoint, "restore", interrupted)
    x = images(1)
    with Fault(60, RuntimeError("bug")), pytest.raises(KeyboardInterrupt):
        server.adapt(x)
    assert torch.equal(server.adapt(images(1)).logits, clean(images(1)))
    assert same(adapter.state_dict(), clean.state_dict())


def test_apply_commits_a_change_or_undoes_it():
    adapter = make("tent")
    fresh, server = adapter.state_dict(), Server(adapter)
    first = server.predict(images(9))
    server.adapt(images(0))
    server.apply(lambda a: a.reset())
    assert same(adapter.state_dict(), fresh)
    again = server.predict(images(9))
    assert torch.equal(again.logits, first.logits)
    assert again.version == 2

    def half(a: Adapter) -> None:
        a(images(1))
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        server.apply(half)
    assert same(adapter.state_dict(), fresh)
    assert server.version == 2


# The background worker ----------------------------------------------------------------------------


def test_what_is_submitted_is_adapted_to_in_order():
    clean = make("tent")
    x = images(0)
    with Server(make("tent"), queue_size=8) as server:
        futures = [server.submit(x)]
        x.zero_()  # the caller's buffer is its own again
        futures += [server.submit(images(key, 1 + key)) for key in range(1, 5)]
    for key, future in enumerate(futures):
        assert future is not None
        step = future.result(0)
        assert step.version == key + 1
        assert torch.equal(step.logits, clean(images(key, 4 if key == 0 else 1 + key)))
    assert torch.equal(server.predict(images(9)).logits, clean.predict(images(9)))
    for call in (server.adapt, server.submit):
        with pytest.raises(AdapterError, match="closed"):
            call(images(0))


def test_a_full_queue_refuses_and_a_closed_server_cancels():
    Halting.half.clear(), Halting.go.clear()
    server = Server(Halting(make_model()), queue_size=2)
    running = server.submit(images(0))
    assert Halting.half.wait(60)
    waiting = [server.submit(images(1)) for _ in range(3)]
    assert waiting[2] is None
    assert server.stats()["queue"] == 2
    closer = threading.Thread(target=server.close, kwargs={"drain": False})
    closer.start()
    for future in waiting[:2]:
        assert future is not None
        while not future.cancelled():
            pass
    Halting.go.set()
    closer.join(60)
    assert running is not None
    assert running.result(0).version == 1
    stats = server.stats()
    assert (stats["steps"], stats["dropped"], stats["queue"]) == (1, 1, 0)


def test_the_worker_survives_a_step_that_fails(caplog):
    clean = make("tent")
    with Server(make("tent")) as server:
        bad = server.submit(torch.zeros(2, 3, 8, 8, dtype=torch.int64))
        wrong = server.submit(torch.rand(2, 4, 8, 8))
        good = server.submit(images(0))
    for future, kind in ((bad, AdapterError), (wrong, RuntimeError)):
        assert future is not None
        assert isinstance(future.exception(0), kind)
    assert good is not None
    assert torch.equal(good.result(0).logits, clean(images(0)))
    assert server.stats()["failed"] == 2
    assert "failed and was undone" in caplog.text


def test_a_listener_that_fails_is_logged(caplog):
    server, heard = Server(make("tent")), list[Step]()
    server.listeners += [lambda step: 1 / 0, heard.append]
    step = server.adapt(images(0))
    assert heard == [step]
    assert server.version == 1
    assert "ZeroDivisionError" in caplog.text


def test_what_a_server_refuses():
    eata = tta.wrap(make_model(), "eata")
    with pytest.raises(AdapterError, match="needs source data"):
        Server(eata)
    with pytest.raises(AdapterError, match="got Sequential"):
        Server(make_model())  # type: ignore[arg-type]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"queue_size": 0}, "queue_size=0"),
        ({"history": 0}, "history=0"),
        ({"window": 0}, "window=0"),
        ({"alpha": 1.0}, "alpha=1.0"),
    ]
    for options, words in wrong:
        with pytest.raises(AdapterError, match=words):
            Server(make("tent"), **options)
    server = Server(make("tent"))
    with pytest.raises(AdapterError, match="floating tensor"):
        server.predict(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(AdapterError, match="cannot serve 'source'"):
        server.switch("source")


def test_numbers_for_a_monitor():
    server = Server(make("tent"))
    first = server.stats()
    assert (first["steps"], first["version"], first["drift"]) == (0, 0, 0)
    server.adapt(images(0))
    x = images(1)
    x[0] = float("nan")
    server.adapt(x)
    stats = server.stats()
    assert (stats["steps"], stats["version"]) == (2, 2)
    assert 0 < stats["entropy"] <= torch.tensor(CLASSES).log() + 1e-6
    assert stats["report_skipped_non_finite"] == 1
    assert stats["step_seconds"] >= stats["last_step_seconds"] > 0
    now = server._commit.point.state["tensors"]
    then = server._adapter._initial["tensors"]
    keys = [k for k in now if now[k].is_floating_point()]
    flat = [torch.cat([state[k].double().flatten() for k in keys]) for state in (now, then)]
    assert stats["drift"] == pytest.approx(float((flat[0] - flat[1]).norm() / flat[1].norm()))
