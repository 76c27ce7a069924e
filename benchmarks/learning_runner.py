"""A life written down: a learner goes through a learning stream, rows and a result come out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import metrics
from benchmarks.forget_results import forget_columns, left_after
from benchmarks.learning_method import AVALANCHE, LEARNER
from benchmarks.learning_results import plain, row_domains, summarise, write_evals
from benchmarks.learning_setup import Prepared, prepare
from benchmarks.learning_spec import LearningSpec
from benchmarks.machine import (
    device_name,
    package_version,
    peak_memory,
    threads_kept,
    versions,
)
from benchmarks.results import SCHEMA_VERSION, RunFolder
from benchmarks.tracking import Tracker, tracked
from continual.evaluate import Evaluation
from continual.forgetting import RelapseWatch, forget_report
from continual.learner import Step
from streams.learning_types import Experience, ForgetRequest, Segment
from streams.types import Batch

Progress = Callable[[int, int, float], None]


def run(
    spec: LearningSpec,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 10.0,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """Run a spec, or take up a run where it was interrupted, and return its row.

    Args:
        spec: What to run.
        out: Results folder; the run gets a folder of its own in it.
        resume: Go on from the last checkpoint of an unfinished run.
        overwrite: Start again even if the run is finished.
        checkpoint_seconds: Least time between checkpoints; 0 writes one after every step.
        progress: Called after each step with (steps done, steps as planned, online error of the
            present item so far in percent).
        tracker: Told of every step and of the end (``make_tracker``); changes no number.

    Returns:
        The flat row of ``result.json``. A finished run of the same spec is returned as it is.

    Raises:
        UsageError: If the spec cannot be carried out, or an unfinished run is in the way.
    """
    return run_prepared(
        prepare(spec),
        out,
        resume=resume,
        overwrite=overwrite,
        checkpoint_seconds=checkpoint_seconds,
        progress=progress,
        tracker=tracker,
    )


def run_prepared(
    prepared: Prepared,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_seconds: float = 10.0,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
) -> dict[str, Any]:
    """As ``run``, with what ``prepare`` built."""
    folder = RunFolder(out / prepared.folder_name)
    said = prepared.spec.model_dump(mode="json") | {"run_id": prepared.run_id}
    if (row := folder.open(said, resume=resume, overwrite=overwrite)) is not None:
        return row
    with tracked(tracker, folder, said), threads_kept():
        recorder = Recorder(prepared, folder, checkpoint_seconds, progress)
        recorder.restore()
        prepared.life.run(recorder)
        return recorder.finish()


class Recorder:
    """Writes a life down: the ``Watch`` of the runner.

    Args:
        prepared: The run.
        folder: Where it is written.
        checkpoint_seconds: Least time between checkpoints.
        progress: Told of every step.
    """

    def __init__(
        self,
        prepared: Prepared,
        folder: RunFolder,
        checkpoint_seconds: float,
        progress: Progress | None,
    ) -> None:
        self.prepared = prepared
        self.folder = folder
        self.checkpoint_seconds = checkpoint_seconds
        self.progress = progress
        self.evaluations: list[Evaluation] = []
        self.forgets: list[dict[str, Any]] = []
        self.relapses = RelapseWatch(prepared.stream)
        self.step = 0
        self._item, self._correct, self._total = -1, 0, 0
        self._saved = time.monotonic()
        items = prepared.stream.items
        # Not all items can be hashed: they are told apart by who they are.
        self._number = {id(item): number for number, item in enumerate(items)}
        self._planned = sum(_steps(item, prepared.spec) for item in items)

    # What a life tells ----------------------------------------------------------------------

    def learned(self, step: Step, experience: Experience, seconds: float) -> None:
        """A training step: one row, with the predictions before the update."""
        y = step.y.detach().cpu()
        batch = Batch(
            x=step.x,
            y=y,
            domain=experience.name,
            severity=0,
            index=torch.from_numpy(np.asarray(step.at)),
            step=self.step,
            domain_ids=torch.zeros(len(y), dtype=torch.int64),
        )
        costs = {"forwards": step.forwards, "backwards": step.backwards}
        self._add(batch, step.logits, experience, {"loss": step.loss, **costs}, seconds)

    def adapted(
        self,
        batch: Batch,
        logits: Tensor,
        report: Mapping[str, float],
        segment: Segment,
        seconds: float,
    ) -> None:
        """A batch of a segment: a row for each domain in it."""
        placed = Batch(
            x=batch.x,
            y=batch.y,
            domain=batch.domain,
            severity=batch.severity,
            index=batch.index,
            step=self.step,
            domain_ids=batch.domain_ids,
        )
        self._add(placed, logits, segment, report, seconds)

    def forgot(self, request: ForgetRequest, server: str | None, seconds: float) -> None:
        """A request to forget, and who served it."""
        number = self._number[id(request)]
        retained, test = left_after(self.prepared.stream, number)
        report = forget_report(
            self.prepared.life.learner.model,
            request.samples,
            retained,
            test,
            seconds=seconds,
            seed=self.prepared.spec.seed,
        )
        self.forgets.append(
            {
                "item": number,
                "name": request.name,
                "kind": request.kind,
                "samples": len(request.samples),
                "served_by": server,
                **report,
            }
        )

    def evaluated(self, evaluation: Evaluation) -> None:
        """A look at all tests."""
        self.evaluations.append(evaluation)
        if evaluation.kind != "step":
            self.relapses.look(self.prepared.life.learner.model, evaluation.item)

    def settled(self, life: Any) -> None:
        """Save, if the last time is long enough ago."""
        if time.monotonic() - self._saved >= self.checkpoint_seconds:
            self.save()
            self._saved = time.monotonic()

    # What is kept ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write rows, evaluations and the state that refers to them."""
        write_evals(self.folder.path, self.evaluations, self.prepared.stream)
        self.folder.save(
            {
                "life": self.prepared.life.state_dict(),
                "evaluations": [plain(evaluation) for evaluation in self.evaluations],
                "forgets": self.forgets,
                "relapses": self.relapses.state_dict(),
                "step": self.step,
                "running": [self._item, self._correct, self._total],
            }
        )

    def restore(self) -> None:
        """Take up the state of the last checkpoint, where there is one."""
        state = self.folder.load(self.prepared.spec.device)
        if state is None:
            return
        with self.folder.whole_checkpoint():
            self.prepared.life.load_state_dict(state["life"])
            self.evaluations = [Evaluation(**values) for values in state["evaluations"]]
            self.relapses.load_state_dict(state["relapses"])
            self.forgets, self.step = list(state["forgets"]), int(state["step"])
            self._item, self._correct, self._total = state["running"]

    def finish(self) -> dict[str, Any]:
        """Write all files, the result last, and return its row."""
        row = self._result()
        write_evals(self.folder.path, self.evaluations, self.prepared.stream)
        self.folder.finish(row)
        return row

    def _add(
        self,
        batch: Batch,
        logits: Tensor,
        item: Experience | Segment,
        report: Mapping[str, float],
        seconds: float,
    ) -> None:
        number = self._number[id(item)]
        rows = metrics.step_rows(batch, logits, row_domains(item), report, seconds)
        for row in rows:
            row["visit"] = number
        self.folder.add(rows)
        self.step += 1
        if number != self._item:
            self._item, self._correct, self._total = number, 0, 0
        self._correct += sum(row["correct"] for row in rows)
        self._total += sum(row["n"] for row in rows)
        if self.progress:
            error = 100 * (1 - self._correct / max(1, self._total))
            self.progress(self.step, max(self.step, self._planned), error)

    def _result(self) -> dict[str, Any]:
        prepared, spec, stream = self.prepared, self.prepared.spec, self.prepared.stream
        table = self.folder.table()
        seconds = float(table["seconds"].sum())
        measured = summarise(table, self.evaluations, stream)
        samples = measured["num_samples"]
        resets = any(i.stream.reset_steps for i in stream.items if isinstance(i, Segment))
        avalanche = AVALANCHE in spec.config
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": prepared.run_id,
            "method": spec.method,
            "protocol": spec.protocol,
            "stream": spec.stream,
            "setting": spec.setting,
            "backbone": spec.backbone,
            "seed": spec.seed,
            **measured,
            **forget_columns(self.forgets, self.relapses.report()),
            "config": json.dumps(spec.config, sort_keys=True),
            "batch_size": spec.batch_size,
            "num_tasks": len(stream.tasks),
            "num_items": len(stream.items),
            "num_examples": len(np.unique(np.concatenate([t.train.keys for t in stream.tasks]))),
            "eval_every": spec.eval_every,
            "carry": spec.carry,
            "reset_policy": "every segment, and within it" if resets else "every segment",
            "predicts": prepared.predicts,
            "provenance": stream.provenance,
            "stream_hash": stream.hash,
            "weights": prepared.start.weights,
            "weight_hash": prepared.weight_hash,
            "weights_by_seed": prepared.start.drawn,
            "source_data": prepared.source_data,
            "norm": None,
            "window": 1,
            "normalisation": prepared.start.normalisation,
            "device": device_name(spec.device),
            "dtype": spec.dtype,
            "threads": torch.get_num_threads(),
            **versions(),
            "version_avalanche": package_version("avalanche-lib") if avalanche else None,
            "seconds": seconds,
            "forget_seconds": sum(f["seconds"] for f in self.forgets),
            "images_per_second": samples / seconds if seconds else None,
            "seconds_per_1k": 1000 * seconds / samples if samples else None,
            "peak_mem_mib": peak_memory(spec.device),
        }


def _steps(item: Experience | Segment | ForgetRequest, spec: LearningSpec) -> int:
    """Steps of an item, as far as no plug-in changes them."""
    if isinstance(item, Segment):
        return len(item.stream)
    if isinstance(item, ForgetRequest):
        return 0
    epochs = item.epochs or int(spec.config[LEARNER]["epochs"])
    return epochs * -(-len(item.train) // spec.batch_size)
