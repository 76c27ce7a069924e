"""Read-ahead changes neither order nor pixels."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import streams
from streams.feed import batches


def stream(**options) -> streams.Stream:
    wanted = {"corruptions": ("gaussian_noise", "fog"), "num_examples": 50, "batch_size": 20}
    return streams.create("fashion-mnist-c", **{**wanted, **options})


def same(left: list[streams.Batch], right: list[streams.Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.x, b.x)
        and torch.equal(a.y, b.y)
        and torch.equal(a.index, b.index)
        and (a.domain, a.severity, a.step) == (b.domain, b.severity, b.step)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers: int) -> None:
    before = torch.get_rng_state()
    assert same(list(batches(stream(), workers)), list(stream()))
    assert torch.equal(before, torch.get_rng_state())


def test_read_ahead_starts_anywhere() -> None:
    rest = stream().start_at(3)
    assert [b.step for b in batches(rest, 2)] == [3, 4, 5]
    assert same(list(batches(rest, 2)), list(stream())[3:])


def test_leaving_early_ends_the_workers() -> None:
    import multiprocessing

    feed = batches(stream(), 2)
    next(feed)
    feed.close()
    del feed
    assert not multiprocessing.active_children()


def test_errors_of_a_worker_reach_the_caller() -> None:
    made = stream()
    with pytest.raises(streams.StreamError, match="workers=-1"):
        next(batches(made, -1))

    class Broken:
        name, num_classes, digest = "broken", 10, "0"
        labels = np.zeros(50, dtype=np.int64)
        provenance = streams.Provenance(kind="arrays")

        def check(self, domain: streams.Domain) -> None: ...

        def images(self, positions: np.ndarray, domain: streams.Domain) -> torch.Tensor:
            raise streams.StreamError("image 7 does not decode")

    broken = streams.Stream(
        **{**{k: getattr(made, k) for k in made.__dataclass_fields__}, "source": Broken()}
    )
    with pytest.raises(streams.StreamError, match="image 7 does not decode"):
        next(batches(broken, 1))


def test_a_stream_pickles() -> None:
    """Platforms that spawn their workers send the stream to them."""
    made = stream()
    again = pickle.loads(pickle.dumps(made))
    assert again.hash == made.hash
    assert same(list(again), list(made))


@pytest.mark.parametrize("error", [ConnectionResetError(104), EOFError(), FileNotFoundError(2)])
def test_a_worker_that_dies_in_handing_over(error: Exception, monkeypatch) -> None:
    def loader(*args: object, **kwargs: object) -> Iterator[None]:
        yield None
        raise error

    def signalled(*args: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("streams.feed.DataLoader", loader)
    made = batches(stream(), 1)
    next(made)
    before = signal.signal(signal.SIGALRM, signalled)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # torch's handler comes after the pipe's end
        with pytest.raises(streams.StreamError, match="a process that made batches died"):
            next(made)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_a_source_raised_in_a_worker_is_not_a_death(monkeypatch) -> None:
    def loader(*args: object, **kwargs: object) -> Iterator[None]:
        raise FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.")
        yield

    monkeypatch.setattr("streams.feed.DataLoader", loader)
    with pytest.raises(FileNotFoundError):
        next(batches(stream(), 1))
