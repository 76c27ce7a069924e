"""The only loop: a stream feeds an adapter, metrics watch, a row comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import streams
import tta
from benchmarks import metrics
from benchmarks.errors import UsageError
from benchmarks.files import asked_for
from benchmarks.guard_columns import summarise_watch, watch_columns
from benchmarks.layout import resolved
from benchmarks.machine import (
    check_device,
    device_name,
    now,
    package_version,
    peak_memory,
    threads_kept,
    versions,
)
from benchmarks.open_metrics import OpenScores
from benchmarks.reference import SourceReference, clean_counts
from benchmarks.results import SCHEMA_VERSION, RunFolder
from benchmarks.source_data import SourceImages, find_source, fit_source
from benchmarks.spec import RunSpec
from benchmarks.tracking import Tracker, tracked
from streams.feed import batches
from streams.types import Stream
from tta import execution, export
from tta.backbones import Backbone, load
from tta.masking import Masked

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Prepared:
    """A spec whose stream, backbone and adapter were built: nothing has been written yet."""

    spec: RunSpec
    stream: Stream
    backbone: Backbone
    adapter: tta.Adapter
    run_id: str
    images: SourceImages | None = None

    @property
    def model_key(self) -> str:
        """What fixes the unadapted model's answers: weights, normalisation, precision."""
        backbone, amp = self.backbone, self.spec.amp
        return f"{backbone.weight_hash}/{backbone.mean}/{backbone.std}" + (f"/{amp}" if amp else "")

    @property
    def folder_name(self) -> str:
        """Readable and unique name of the run's folder."""
        spec = self.spec
        parts = (spec.method, spec.stream, spec.setting, self.backbone.name, f"s{spec.seed}")
        name = "-".join(parts).replace("/", "_").replace(":", "_")
        return f"{name}-{self.run_id[:8]}"


def prepare(spec: RunSpec) -> Prepared:
    """Build everything a run needs.

    Raises:
        UsageError: If backbone and stream do not fit, or the device is not there.
        tta.AdapterError: If the backbone or the method cannot be had as asked.
        streams.StreamError: If the data is missing or damaged.
    """
    check_device(spec.device)
    stream = open_stream(spec)
    backbone = load(
        spec.backbone,
        checkpoint=Path(spec.checkpoint) if spec.checkpoint else None,
        mean=spec.mean,
        std=spec.std,
    )
    backbone = _matched(backbone, stream)
    backbone.model.to(device=spec.device, dtype=stream.dtype).eval().requires_grad_(False)
    x = stream.batch(0).x.to(spec.device)
    try:
        with torch.no_grad():
            backbone.model(x[:1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"backbone {backbone.name} does not take images {tuple(x.shape[1:])}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    execution.lay_out(backbone.model, resolved(spec.layout, backbone.model, x, spec.backbone))
    execution.set_precision(backbone.model, spec.amp)
    config = tta.adapter_config(spec.method).create(
        {k: tuple(v) if isinstance(v, list) else v for k, v in spec.config.items()}
    )
    adapter = tta.wrap(
        backbone.model,
        spec.method,
        norm=spec.norm,
        norm_options=spec.norm_options,
        window=spec.window,
        guard=spec.guard,
        budget=spec.budget,
        **config.to_dict(),
    )
    needs, images = adapter.needs, None
    if needs.source_data:
        images = find_source(spec, stream, needs.source_labels)
    said = () if images is None else (images.words, images.digest)
    run_id = spec.identity(backbone.weight_hash, stream.hash, package_version("tta-bench"), *said)
    return Prepared(spec, stream, backbone, adapter, run_id, images)


def open_stream(spec: RunSpec) -> Stream:
    """The stream of a run, planned; no image is read yet.

    Raises:
        streams.StreamError: If the data is missing or damaged, or a value does not fit it.
    """
    return streams.create(
        spec.stream,
        setting=spec.setting,
        severity=spec.severity,
        corruptions=spec.corruptions,
        num_examples=spec.num_examples,
        skip_examples=spec.skip_examples,
        batch_size=spec.batch_size,
        seed=spec.seed,
        shuffle=spec.shuffle,
        data_dir=spec.data_dir,
        dtype=torch.float64 if spec.dtype == "float64" else torch.float32,
        setting_options=spec.setting_options,
        order=spec.order,
        source_options=spec.source_options,
        open_set=spec.open_set,
        open_ratio=spec.open_ratio,
    )


def _matched(backbone: Backbone, stream: Stream) -> Backbone:
    """The backbone with the stream's classes: its own, or the part of them that the stream has."""
    if backbone.num_classes == stream.num_classes:
        return backbone
    class_ids = getattr(stream.source, "class_ids", None)
    if class_ids is None or max(class_ids) >= backbone.num_classes:
        raise UsageError(
            f"backbone {backbone.name} has {backbone.num_classes} classes, "
            f"stream {stream.name} has {stream.num_classes}"
        )
    masked = Masked(backbone.model, class_ids, backbone.num_classes).eval()
    return replace(backbone, model=masked, num_classes=len(class_ids))


def run(
    spec: RunSpec,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 10.0,
    workers: int = 0,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
    export_diff: Path | None = None,
) -> dict[str, Any]:
    """Run a spec, or take up a run where it was interrupted, and return its row.

    Args:
        spec: What to run.
        out: Results folder; the run gets a folder of its own in it.
        resume: Go on from the last checkpoint of an unfinished run.
        overwrite: Start again even if the run is finished.
        checkpoint_seconds: Least time between checkpoints; 0 writes one after every step.
        workers: Processes that make batches ahead of the adapter; no number depends on it.
        progress: Called after each step with (steps done, steps, error so far in percent).
        tracker: Told of every step and of the end (``make_tracker``); changes no number.
        export_diff: File that gets what the run changed in its source model (``tta.export``).

    Returns:
        The flat row of ``result.json``. A finished run of the same spec is returned as it is.

    Raises:
        UsageError: If the spec cannot be carried out, or an unfinished run is in the way.
    """
    prepared = prepare(spec)
    folder = RunFolder(out / prepared.folder_name)
    said = spec.model_dump(mode="json") | {"run_id": prepared.run_id}
    if (row := folder.open(said, resume=resume, overwrite=overwrite)) is not None:
        if export_diff is not None:
            raise UsageError(
                f"{folder.path} is finished and keeps no weights: --overwrite runs it again for "
                f"{export_diff}"
            )
        return row
    with tracked(tracker, folder, said), threads_kept():
        loop = _Loop(prepared, folder, checkpoint_seconds, workers, progress)
        if export_diff is None:
            return loop.run()
        with asked_for(export_diff) as file:
            row = loop.run()
            export.save(prepared.adapter, prepared.backbone.model, file)
            return row


class _Loop:
    """One run in progress."""

    def __init__(
        self,
        prepared: Prepared,
        folder: RunFolder,
        checkpoint_seconds: float,
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.prepared = prepared
        self.folder = folder
        self.checkpoint_seconds = checkpoint_seconds
        self.workers = workers
        self.progress = progress
        self.reference = SourceReference.open(
            prepared.backbone.model,
            prepared.model_key,
            prepared.stream,
            prepared.spec.device,
        )
        self.correct = self.total = 0
        self.scores = OpenScores() if prepared.spec.open_set else None

    def run(self) -> dict[str, Any]:
        stream, adapter = self.prepared.stream, self.prepared.adapter
        device = self.prepared.spec.device
        resets = set(stream.reset_steps)
        if self.prepared.spec.compiled:
            # After copies were made of it: a copy of a compiled module is not compiled.
            execution.compile_(adapter)
        first = self._restore()
        saved = time.monotonic()
        if adapter.needs.source_data and not adapter.source_fitted:
            assert self.prepared.images is not None
            model = self.prepared.model_key
            fit_source(adapter, self.prepared.spec, stream, self.prepared.images, model)
        for batch in batches(stream.start_at(first), self.workers):
            if batch.step in resets:
                adapter.reset()
            x = batch.x.to(device)
            started = now(device)
            logits = adapter(x)
            seconds = now(device) - started
            visits = stream.plan.visits(batch.step)
            rows = metrics.step_rows(
                *(batch, logits, stream.domains, adapter.report, seconds, visits),
                watch=watch_columns(adapter),
            )
            self.folder.add(rows)
            # The source method answers with the reference's own model: one forward serves both.
            own = logits if self.prepared.spec.method == "source" else None
            self.reference.add(batch, stream, device, own)
            self.correct += sum(row["correct"] for row in rows)
            self.total += sum(row["n"] for row in rows)
            if self.scores:
                self.scores.add(batch, logits)
            if time.monotonic() - saved >= self.checkpoint_seconds:
                self._save(batch.step + 1)
                saved = time.monotonic()
            if self.progress:
                error = 100 * (1 - self.correct / max(1, self.total))
                self.progress(batch.step + 1, len(stream), error)
        self.reference.finish(stream, device)
        result = self._result(clean_counts(adapter.predict, stream, device))
        self.folder.finish(result)
        return result

    def _save(self, step: int) -> None:
        self.folder.save(
            {
                "step": step,
                "adapter": self.prepared.adapter.state_dict(),
                "layout": execution.layout_of(self.prepared.adapter),
                "reference": self.reference.counts,
                "correct": self.correct,
                "total": self.total,
                "scores": self.scores.state() if self.scores else {},
            }
        )

    def _restore(self) -> int:
        state = self.folder.load(self.prepared.spec.device)
        if state is None:
            return 0
        with self.folder.whole_checkpoint():
            # What a probe says now may not be what it said when the run began.
            execution.lay_out(self.prepared.adapter, state["layout"])
            self.prepared.adapter.load_state_dict(state["adapter"])
            self.correct, self.total = int(state["correct"]), int(state["total"])
            if self.scores:
                self.scores.restore(state["scores"])
            if not self.reference.known:
                self.reference.counts = dict(state["reference"])
            return int(state["step"])

    def _result(self, clean: list[int] | None) -> dict[str, Any]:
        spec, stream, backbone = self.prepared.spec, self.prepared.stream, self.prepared.backbone
        table = self.folder.table()
        seconds = float(table["seconds"].sum())
        source_clean = self.reference.clean
        measured = metrics.summarise(table, stream.domains)
        scores = self.scores or OpenScores()
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.prepared.run_id,
            "method": spec.method,
            "protocol": spec.protocol,
            "stream": spec.stream,
            "setting": spec.setting,
            "backbone": backbone.name,
            "seed": spec.seed,
            **measured,
            **scores.summarise(100 - measured["error_pct"]),
            "open_set": spec.open_set,
            "source_error_pct": self.reference.error_pct(),
            "clean_error_pct": _error(clean),
            "source_clean_error_pct": _error(source_clean),
            "config": json.dumps(spec.config, sort_keys=True),
            "batch_size": spec.batch_size,
            "severity": ",".join(map(str, spec.severity)),
            "num_examples": stream.describe()["images"],
            "reset_policy": "every domain" if stream.reset_steps else "never",
            "predicts": f"{self.prepared.adapter.predicts} the update",
            "provenance": str(stream.provenance),
            "stream_hash": stream.hash,
            "weights": backbone.weights,
            "weight_hash": backbone.weight_hash,
            "source_data": None if self.prepared.images is None else self.prepared.images.words,
            "norm": spec.norm,
            "window": spec.window,
            "guard": _said(spec.guard),
            "budget": _said(spec.budget),
            **summarise_watch(table),
            "tuned_trials": spec.tuned_trials,
            "tuned_on": spec.tuned_on,
            "normalisation": f"mean={backbone.mean} std={backbone.std}, inside the model",
            "device": device_name(spec.device),
            "dtype": spec.dtype,
            "layout": execution.layout_of(self.prepared.adapter),
            "amp": spec.amp,
            "compiled": spec.compiled,
            "threads": torch.get_num_threads(),
            **versions(),
            "seconds": seconds,
            "images_per_second": measured["num_samples"] / seconds,
            "seconds_per_1k": 1000 * seconds / measured["num_samples"],
            "peak_mem_mib": peak_memory(spec.device),
        }


def _said(options: dict[str, Any] | None) -> str | None:
    return None if options is None else json.dumps(options, sort_keys=True)


def _error(counts: list[int] | None) -> float | None:
    return None if counts is None else 100 * (1 - counts[0] / counts[1])
