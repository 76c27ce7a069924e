"""What a step costs, and what it cannot cost less than.

The lower bound of a step is the price of the forwards and backwards that the method made, each
priced by a bare model of the same sizes in the same round: everything above it is the method's
bookkeeping and ours.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import streams
import tta
from benchmarks import metrics
from benchmarks.machine import check_device, now, peak_memory
from streams.types import Batch, Stream
from tta import norm_layers
from tta.backbones import Normalized, load

# Images of real texture: what a method selects depends on the entropy of its predictions.
STREAM = "fashion-mnist-c"
_CORRUPTIONS = ("gaussian_noise", "fog", "contrast")
_SOURCE_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is measured.

    Attributes:
        method: Registered name.
        backbone: A spec of ``tta.backbones.load``.
        checkpoint: Weights file of the backbone.
        batch_size: Images a step.
        rounds: Measured steps; each also prices the bare model.
        layout: ``channels-last``, ``contiguous``, or ``own``: as the backbone is loaded.
        options: Fields of the method's config.
        device: Torch device.
        threads: Intra-op threads; 0 leaves torch's choice.
    """

    method: str
    backbone: str
    checkpoint: Path | None = None
    batch_size: int = 200
    rounds: int = 10
    layout: str = "own"
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One row of the table; times are medians over the rounds.

    Attributes:
        method: Registered name.
        forward_ms: A bare forward of the batch without a graph.
        backward_ms: A bare forward and backward for the adapted parameters.
        step_ms: The adapter's step.
        bound_ms: The step's own forwards and backwards, priced bare in the same round.
        ratio: Median over the rounds of step over bound.
        images_per_second: Of the step.
        forwards: Images forward in a step, per image of the batch, as the method reports them.
        backwards: The same, backward.
        harness_pct: Metrics and rows of a step, in percent of the step.
        feed_ms: Making a batch of the stream in the same process.
        peak_mib: Peak memory: the process's resident size, on CUDA the allocator's.
        base_mib: The same before the adapter was built, after a bare forward.
    """

    method: str
    forward_ms: float
    backward_ms: float
    step_ms: float
    bound_ms: float
    ratio: float
    images_per_second: float
    forwards: float
    backwards: float
    harness_pct: float
    feed_ms: float
    peak_mib: float
    base_mib: float


@dataclass
class _Call:
    """A forward of the whole model inside a step."""

    images: int
    graph: bool


class _Bare:
    """The model alone, in the modes that the method gave it, priced at two sizes.

    The time of a forward is taken as affine in the number of images.
    """

    def __init__(self, model: nn.Module, names: set[str], x: Tensor, device: str) -> None:
        self.model, self.device = model, device
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        self.learns = any(p.requires_grad for p in model.parameters())
        small = max(2, len(x) // 4)
        self.batches = {len(x): x, small: x[:small]}

    def time(self) -> dict[int, tuple[float, float]]:
        """Seconds of a forward, and of a forward and backward, for each of the sizes."""
        return {size: (self._forward(x), self._both(x)) for size, x in self.batches.items()}

    def _forward(self, x: Tensor) -> float:
        started = now(self.device)
        with torch.no_grad():
            self.model(x)
        return now(self.device) - started

    def _both(self, x: Tensor) -> float:
        if not self.learns:
            return 0.0
        started = now(self.device)
        loss: Tensor = self.model(x).logsumexp(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        seconds = now(self.device) - started
        self.model.zero_grad(set_to_none=True)
        return seconds


def measure(request: Request) -> dict[str, Any]:
    """Profile one method in this process.

    Raises:
        tta.AdapterError: If the method cannot adapt the backbone.
        BackboneError: If the backbone cannot be had.
        UsageError: If the device is not there.
    """
    check_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    backbone = load(request.backbone, checkpoint=request.checkpoint)
    model = laid_out(backbone.model, request.layout).to(request.device)
    stream = _stream(request.batch_size)
    feed = _Feed(stream, backbone.input_size, request.device)
    _, x = feed.next()
    with torch.no_grad():
        model.eval()(x)
    base = peak_memory(request.device)
    adapter = tta.wrap(model, request.method, **request.options)
    if adapter.needs.source_data:
        adapter.fit_source(_source(adapter, feed))
    bare = _Bare(_plain_twin(model, adapter), _adapted(adapter), x, request.device)
    with _calls(adapter) as calls:
        adapter(x)  # warms up: thread pools, moments, teachers
        bare.time()
        rounds = [_round(adapter, bare, feed, calls, request.device) for _ in range(request.rounds)]
    medians = {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}
    size = request.batch_size
    return asdict(
        Cost(
            method=request.method,
            forward_ms=1e3 * medians["forward"],
            backward_ms=1e3 * medians["both"],
            step_ms=1e3 * medians["step"],
            bound_ms=1e3 * medians["bound"],
            ratio=medians["ratio"],
            images_per_second=size / medians["step"],
            forwards=statistics.fmean(entry["forwards"] for entry in rounds) / size,
            backwards=statistics.fmean(entry["backwards"] for entry in rounds) / size,
            harness_pct=100 * medians["harness"] / medians["step"],
            feed_ms=1e3 * medians["feed"],
            peak_mib=peak_memory(request.device),
            base_mib=base,
        )
    )


def laid_out(model: nn.Module, layout: str) -> nn.Module:
    """The model in a memory layout: ``channels-last``, ``contiguous``, or ``own``."""
    if layout == "own":
        return model
    last = layout == "channels-last"
    if isinstance(model, Normalized):
        model.channels_last = last
    made: nn.Module = model.to(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    return made


def _round(
    adapter: tta.Adapter, bare: _Bare, feed: _Feed, calls: list[_Call], device: str
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
    prices = {
        size: tuple((a + b) / 2 for a, b in zip(before[size], after[size], strict=True))
        for size in before
    }
    bound = _bound(made, report, prices, len(x))
    return {
        "forward": prices[len(x)][0],
        "both": prices[len(x)][1],
        "step": step,
        "bound": bound,
        "ratio": step / bound,
        "harness": harness,
        "feed": fed,
        "forwards": report["forwards"],
        "backwards": report["backwards"],
    }


def _bound(
    calls: list[_Call], report: dict[str, float], prices: dict[int, tuple[float, ...]], size: int
) -> float:
    """Seconds of the forwards and backwards of a step, by affine prices."""
    (large, at_large), (small, at_small) = sorted(prices.items(), reverse=True)

    def price(images: int, which: int) -> float:
        slope = (at_large[which] - at_small[which]) / (large - small)
        # Noise may turn the line; a size is never cheaper than in proportion to nothing.
        return max(at_large[which] + slope * (images - large), 0.0)

    learnt = report["backwards"] > 0
    seconds = sum(price(call.images, int(call.graph and learnt)) for call in calls)
    # Forwards that did not go through the whole model's ``forward`` count by the method's report.
    unseen = report["forwards"] - sum(call.images for call in calls)
    if unseen > 0:
        seconds += unseen * at_large[0] / size
    return seconds


@contextmanager
def _calls(adapter: tta.Adapter) -> Iterator[list[_Call]]:
    """Record the forwards of the adapted model and of its teachers."""
    kind, seen = type(adapter.model), []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(_Call(len(args[0]), torch.is_grad_enabled()))

    roots = [child for child in adapter.children() if type(child) is kind]
    hooks = [root.register_forward_pre_hook(note) for root in roots]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _adapted(adapter: tta.Adapter) -> set[str]:
    return {name for name, p in adapter.model.named_parameters() if p.requires_grad}


def _plain_twin(model: nn.Module, adapter: tta.Adapter) -> nn.Module:
    """The model as it came, with batch statistics where the method has them."""
    own = bool(norm_layers.find(adapter))
    moved = {name for name, m in adapter.model.named_modules() if m.training}
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (own or name in moved):
            module.train()
    return twin


class _Feed:
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


def _stream(batch_size: int) -> Stream:
    return streams.create(
        STREAM,
        setting="continual",
        severity=(5,),
        corruptions=_CORRUPTIONS,
        num_examples=min(10_000, batch_size * 8),
        batch_size=batch_size,
        seed=0,
    )


def _source(adapter: tta.Adapter, feed: _Feed) -> Iterator[Any]:
    for _ in range(_SOURCE_BATCHES):
        _, x = feed.next()
        # Any labels will do: what the statistics say does not change what a step costs.
        labels = torch.arange(len(x), device=x.device) % 10
        yield (x, labels) if adapter.needs.source_labels else x
