"""What a step costs, and what it cannot cost less than.

The lower bound of a step is the price of the forwards and backwards that the method made, each
priced by a bare model of the same sizes in the same round: everything above it is the method's
bookkeeping and ours.
"""

from __future__ import annotations

import statistics
from contextlib import closing, nullcontext
from dataclasses import asdict
from typing import Any

import torch

import tta
from benchmarks import metrics
from benchmarks.allocator import keep_freed_memory
from benchmarks.layout import resolved
from benchmarks.machine import check_device, now, peak_memory
from benchmarks.profile_bound import Bare, Call, adapted, bare_twin, bound, calls_of
from benchmarks.profile_feed import Feed, source_for, stream_of
from benchmarks.profile_plain import PlainTwin
from benchmarks.profile_types import Cost, Request
from tta import execution
from tta.backbones import load
from tta.containers import nbytes

_WARM_UP = 10  # steps at most


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
        peak, held = peak_memory(request.device), adapter.nbytes
        bare.cover(largest)
        bare.time()
        twin = closing(PlainTwin(request, steps=number)) if request.plain else nullcontext()
        with twin as plain:
            rounds = [
                _round(adapter, bare, feed, calls, request.device, plain)
                for _ in range(request.rounds)
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


def _round(
    adapter: tta.Adapter,
    bare: Bare,
    feed: Feed,
    calls: list[Call],
    device: str,
    plain: PlainTwin | None,
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
