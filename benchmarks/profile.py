"""What a step costs, and what it cannot cost less than.

The lower bound of a step is the price of the forwards and backwards that the method made, each
priced by a bare model of the same sizes in the same round: everything above it is the method's
bookkeeping and ours.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import streams
import tta
from benchmarks import metrics
from benchmarks.allocator import keep_freed_memory
from benchmarks.layout import Choice, resolved
from benchmarks.machine import check_device, now, peak_memory
from benchmarks.profile_bound import Bare, Call, adapted, bare_twin, bound, calls_of
from streams.types import Batch, Stream
from tta import execution, moments
from tta.architectures import BasicBlock, CifarResNet
from tta.backbones import load
from tta.containers import nbytes

# Images of real texture: what a method selects depends on the entropy of its predictions.
STREAM = "fashion-mnist-c"
_CORRUPTIONS = ("gaussian_noise", "fog", "contrast")
_SOURCE_BATCHES = 2
_WARM_UP = 10  # steps at most


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is measured.

    Attributes:
        method: Registered name.
        backbone: A spec of ``tta.backbones.load``.
        checkpoint: Weights file of the backbone.
        stream: A stream with common corruptions: what a method selects depends on its images.
        data_dir: Folder of its data.
        severity: Of its corruptions, 1 to 5.
        batch_size: Images a step.
        rounds: Measured steps; each also prices the bare model.
        layout: ``auto``, ``channels-last``, ``contiguous``, or ``own``: as the backbone is loaded.
        amp: ``bf16``: under autocast.
        compiled: Compile the network, with torch.compile.
        plain: Also time the same step as reference implementations run it: contiguous, float32,
            not compiled, moments by ``torch.var``.
        options: Fields of the method's config.
        device: Torch device.
        threads: Intra-op threads; 0 leaves torch's choice.
    """

    method: str
    backbone: str
    checkpoint: Path | None = None
    stream: str = STREAM
    data_dir: Path | None = None
    severity: int = 5
    batch_size: int = 200
    rounds: int = 10
    layout: Choice = "auto"
    amp: execution.Precision | None = None
    compiled: bool = False
    plain: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One row of the table; times are medians over the rounds.

    Attributes:
        method: Registered name.
        layout: Memory layout of the step.
        forward_ms: A bare forward of the batch without a graph.
        backward_ms: A bare forward and backward for the adapted parameters.
        step_ms: The adapter's step.
        bound_ms: The step's own forwards and backwards, priced bare in the same round.
        ratio: Median over the rounds of step over bound.
        images_per_second: Of the step.
        forwards: Images forward in a step, per image of the batch, as the method reports them.
        backwards: The same, backward.
        plain_ms: The step of the plain form; ``None`` where it was not asked for.
        plain_forward_ms: A bare forward of the plain form.
        speedup: Median over the rounds of the plain step over the step.
        harness_pct: Metrics and rows of a step, in percent of the step.
        feed_ms: Making a batch of the stream in the same process.
        peak_mib: Peak memory after two steps: the process's resident size, on CUDA the allocator's.
        bare_mib: The same before the first step, after the bare forward and backward.
        state_mib: What the adapter holds beside the model: teachers, anchors, banks, the state to
            reset to.
        memory_ratio: Peak over bare and state.
    """

    method: str
    layout: str
    forward_ms: float
    backward_ms: float
    step_ms: float
    bound_ms: float
    ratio: float
    images_per_second: float
    forwards: float
    backwards: float
    plain_ms: float | None
    plain_forward_ms: float | None
    speedup: float | None
    harness_pct: float
    feed_ms: float
    peak_mib: float
    bare_mib: float
    state_mib: float
    memory_ratio: float


def measure(request: Request) -> dict[str, Any]:
    """Profile one method in this process.

    Raises:
        tta.AdapterError: If the method cannot adapt the backbone.
        BackboneError: If the backbone cannot be had.
        StreamError: If the stream has no such corruptions, or its data is missing.
        UsageError: If the device is not there.
    """
    check_device(request.device)
    keep_freed_memory()  # as ``run`` does
    if request.threads:
        torch.set_num_threads(request.threads)
    backbone = load(request.backbone, checkpoint=request.checkpoint)
    model = backbone.model.to(request.device).eval()
    images = stream_of(request.batch_size, request.stream, request.data_dir, request.severity)
    feed = Feed(images, backbone.input_size, request.device)
    _, x = feed.next()
    with torch.no_grad():
        model(x)
    layout = resolved(request.layout, model, x, backbone.name)
    pristine = copy.deepcopy(model) if request.plain else None
    execution.lay_out(model, layout)
    execution.set_precision(model, request.amp)
    adapter = tta.wrap(model, request.method, **request.options)
    bare = Bare(bare_twin(model, adapter), adapted(adapter), x, request.device)
    if request.compiled:
        execution.compile_(adapter)
        execution.compile_(bare.model)
    bare.time()
    bare_mib = peak_memory(request.device)
    if adapter.needs.source_data:
        adapter.fit_source(source_for(adapter, feed))
    with calls_of(adapter) as calls:
        largest = 0
        for number in range(_WARM_UP):  # thread pools, moments, teachers; memories fill
            adapter(x)
            bare.time()
            before, largest = largest, max((call.images for call in calls), default=0)
            if number >= (2 if request.compiled else 1) and largest == before:
                break
        # Before the plain form exists: its memory is not the method's.
        peak, held = peak_memory(request.device), adapter.nbytes
        bare.cover(largest)
        bare.time()
        plain = None if pristine is None else _Plain(pristine, request, feed, steps=number)
        rounds = [
            _round(adapter, bare, feed, calls, request.device, plain) for _ in range(request.rounds)
        ]
    medians = {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}
    size = request.batch_size
    state_mib = (held - nbytes([*model.parameters(), *model.buffers()])) / 2**20
    return asdict(
        Cost(
            method=request.method,
            layout=execution.layout_of(model),
            forward_ms=1e3 * medians["forward"],
            backward_ms=1e3 * medians["both"],
            step_ms=1e3 * medians["step"],
            bound_ms=1e3 * medians["bound"],
            ratio=medians["ratio"],
            images_per_second=size / medians["step"],
            forwards=statistics.fmean(entry["forwards"] for entry in rounds) / size,
            backwards=statistics.fmean(entry["backwards"] for entry in rounds) / size,
            plain_ms=1e3 * medians["plain"] if plain else None,
            plain_forward_ms=1e3 * medians["plain_forward"] if plain else None,
            speedup=medians["speedup"] if plain else None,
            harness_pct=100 * medians["harness"] / medians["step"],
            feed_ms=1e3 * medians["feed"],
            peak_mib=peak,
            bare_mib=bare_mib,
            state_mib=state_mib,
            memory_ratio=peak / (bare_mib + state_mib),
        )
    )


class _Plain:
    """The step as reference implementations run it: nothing of ours in the network."""

    def __init__(self, model: nn.Module, request: Request, feed: Feed, steps: int) -> None:
        execution.lay_out(model, "contiguous")
        for part in model.modules():
            if isinstance(part, CifarResNet | BasicBlock):
                part.inplace = False
        # Its activations are torch's own: ``wrap`` replaces those of the copies that it makes.
        own = copy.deepcopy(model)
        self._adapter = tta.wrap(own, request.method, inplace=True, **request.options)
        self._model, self._device = model, request.device
        if self._adapter.needs.source_data:
            self._adapter.fit_source(source_for(self._adapter, feed))
        for _ in range(steps):
            self.time(feed.next()[1])

    def time(self, x: Tensor) -> tuple[float, float]:
        """Seconds of a bare forward and of a step."""
        started = now(self._device)
        with torch.no_grad():
            self._model(x)
        forward = now(self._device) - started
        with _slow_moments():
            started = now(self._device)
            self._adapter(x)
            return forward, now(self._device) - started


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


def _round(
    adapter: tta.Adapter,
    bare: Bare,
    feed: Feed,
    calls: list[Call],
    device: str,
    plain: _Plain | None,
) -> dict[str, float]:
    started = now(device)
    batch, x = feed.next()
    fed = now(device) - started
    # The bare model before and after the step: a machine that drifts drifts for both.
    before = bare.time()
    calls.clear()
    started = now(device)
    logits = adapter(x)
    step = now(device) - started
    made = list(calls)
    after = bare.time()
    started = now(device)
    report = adapter.report
    metrics.step_rows(batch, logits, feed.stream.domains, report, step)
    harness = now(device) - started
    plain_forward, plain_step = plain.time(x) if plain else (0.0, 0.0)
    prices = {
        size: tuple((a + b) / 2 for a, b in zip(before[size], after[size], strict=True))
        for size in before
    }
    least = bound(made, report, prices, len(x))
    return {
        "forward": prices[len(x)][0],
        "both": prices[len(x)][1],
        "step": step,
        "bound": least,
        "ratio": step / least,
        "harness": harness,
        "feed": fed,
        "forwards": report["forwards"],
        "backwards": report["backwards"],
        "plain": plain_step,
        "plain_forward": plain_forward,
        "speedup": plain_step / step,
    }


class Feed:
    """Endless batches of a stream, resized to the model."""

    def __init__(self, stream: Stream, input_size: tuple[int, int], device: str) -> None:
        self.stream, self._size, self._device = stream, input_size, device
        self._batches = iter(stream)

    def next(self) -> tuple[Batch, Tensor]:
        """The next batch, and its images as the model takes them."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.stream)
            batch = next(self._batches)
        x = batch.x
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if tuple(x.shape[-2:]) != self._size:
            x = F.interpolate(x, self._size, mode="bilinear", antialias=False).clamp(0, 1)
        return batch, x.contiguous().to(self._device)


def stream_of(
    batch_size: int, name: str = STREAM, data_dir: Path | None = None, severity: int = 5
) -> Stream:
    """Corrupted images with something to select and something to leave out.

    Raises:
        StreamError: If the stream has no such corruptions, or its data is missing.
    """
    return streams.create(
        name,
        data_dir=data_dir,
        setting="mixed",
        severity=(severity,),
        corruptions=_CORRUPTIONS,
        num_examples=min(10_000, batch_size * 8),
        batch_size=batch_size,
        seed=0,
    )


def source_for(adapter: tta.Adapter, feed: Feed) -> Iterator[Any]:
    """A few batches for ``fit_source``."""
    for _ in range(_SOURCE_BATCHES):
        _, x = feed.next()
        # Any labels will do: what the statistics say does not change what a step costs.
        labels = torch.arange(len(x), device=x.device) % 10
        yield (x, labels) if adapter.needs.source_labels else x
