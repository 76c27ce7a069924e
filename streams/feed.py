"""Read-ahead: batches made by worker processes while the caller computes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from streams.errors import WORKER_DIED, StreamError
from streams.types import Batch, Stream

# Seconds in which the signal of a worker's end arrives, once its pipes are closed: far more than it
# takes.
_SIGNAL = 1.0
_AHEAD = 2  # batches a worker keeps ready: bounds the memory, whatever the length of the stream


@dataclass(frozen=True)
class _Steps(Dataset[Batch]):
    """A stream as a map from step to batch; a worker needs nothing else."""

    stream: Stream

    def __getitem__(self, step: int) -> Batch:
        return self.stream.batch(step)


def batches(stream: Stream, workers: int = 0) -> Iterator[Batch]:
    """The batches of a stream in order; the same for any number of workers.

    Args:
        stream: The stream, from its ``first_step`` on.
        workers: Processes that decode and corrupt ahead of the caller; 0 works in the caller.

    Raises:
        StreamError: For a negative number of workers, one that died while it handed over a batch,
            or what the source raises.
    """
    if workers < 0:
        raise StreamError(f"workers={workers} is out of range: it must be at least 0")
    if workers == 0:
        yield from stream
        return
    loader = DataLoader(
        _Steps(stream),
        sampler=range(stream.first_step, len(stream.plan)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        # Without one of its own the loader draws its base seed from torch's global generator.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # The other end of a pipe, or the socket that memory is passed through, is gone. What a
        # source raised in a worker says so.
        if "DataLoader worker" in str(error):
            raise
        # Torch's signal handler raises for the same death wherever the interpreter is by then, in
        # the caller's handling of this error too: let it do so here.
        with suppress(RuntimeError):
            time.sleep(_SIGNAL)
        raise StreamError(WORKER_DIED) from error
