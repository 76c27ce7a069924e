"""The step as reference implementations run it: nothing of ours in the network or the process.

That is contiguous, float32, not compiled, with moments by ``torch.var_mean``, activations out of
place and the allocator as it is. The allocator's settings, which ``run`` changes
(``benchmarks.allocator``), are those of a whole process, so this form runs in one of its own, in
turns with the step that it is compared with.
"""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import tta
from benchmarks.machine import now
from benchmarks.profile_feed import Feed, source_for, stream_of
from benchmarks.profile_types import Request
from benchmarks.quiet import quiet_worker
from tta import execution, moments
from tta.architectures import BasicBlock, CifarResNet
from tta.backbones import load


class PlainTwin:
    """The plain form in another process, which waits while this one works."""

    def __init__(self, request: Request, steps: int) -> None:
        """Start it, and warm it up for ``steps`` steps."""
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, quiet_worker)
        self._pool.submit(_start, request, steps).result()

    def time(self, x: Tensor) -> tuple[float, float]:
        """Seconds of a bare forward and of a step.

        Raises:
            concurrent.futures.process.BrokenProcessPool: If the process died.
        """
        return self._pool.submit(_time, x.cpu().numpy()).result()

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


class _Plain:
    def __init__(self, request: Request, steps: int) -> None:
        if request.threads:
            torch.set_num_threads(request.threads)
        backbone = load(request.backbone, checkpoint=request.checkpoint)
        self._model, self._device = backbone.model.to(request.device).eval(), request.device
        execution.lay_out(self._model, "contiguous")
        for part in self._model.modules():
            if isinstance(part, CifarResNet | BasicBlock):
                part.inplace = False
        # Its activations are torch's own: ``wrap`` replaces those of the copies that it makes.
        own = copy.deepcopy(self._model)
        self._adapter = tta.wrap(own, request.method, inplace=True, **request.options)
        images = stream_of(request.batch_size, request.stream, request.data_dir, request.severity)
        feed = Feed(images, backbone.input_size, request.device)
        if self._adapter.needs.source_data:
            self._adapter.fit_source(source_for(self._adapter, feed))
        for _ in range(steps):
            self.time(feed.next()[1])

    def time(self, x: Tensor) -> tuple[float, float]:
        x = x.to(self._device)
        started = now(self._device)
        with torch.no_grad():
            self._model(x)
        forward = now(self._device) - started
        with _slow_moments():
            started = now(self._device)
            self._adapter(x)
            return forward, now(self._device) - started


# Of the process that a pool has started.
_plain: _Plain


def _start(request: Request, steps: int) -> None:
    global _plain
    _plain = _Plain(request, steps)


def _time(x: Any) -> tuple[float, float]:
    return _plain.time(torch.from_numpy(x))


@contextmanager
def _slow_moments() -> Iterator[None]:
    def of_batch(x: Tensor, *, correction: int = 0) -> tuple[Tensor, Tensor]:
        return torch.var_mean(x, [0, *range(2, x.ndim)], correction=correction)

    def of_images(x: Tensor, *, correction: int = 0) -> tuple[Tensor, Tensor]:
        return torch.var_mean(x, list(range(2, x.ndim)), correction=correction)

    def normalised(x: Tensor, head: moments.Head, *params: Tensor | None) -> Tensor:
        return moments.affine(x, *head(*of_images(x), *params))

    slows: dict[str, Any] = {"of_batch": of_batch, "of_images": of_images}
    slows |= {"normalised": normalised, "fused": lambda x: False}
    with ExitStack() as stack:
        for name, slow in slows.items():
            stack.enter_context(mock.patch.object(moments, name, slow))
        yield
