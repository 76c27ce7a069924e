"""One class for each tracker; each imports its library when it is made."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.tracking import parameters, step_values, summary

_ID = "tta_bench.run_id"
_PROJECT = "tta-bench"


class TensorBoard:
    """Event files in the run's folder, ``tensorboard``."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make = SummaryWriter
        self._writer: Any = None
        self._open: Callable[[int], Any]

    def start(self, spec: Mapping[str, Any], folder: Path) -> None:
        """The writer is made at the first step, which says where the axis goes on."""
        said = json.dumps(parameters(spec), indent=2)

        def open_at(step: int) -> Any:
            # What a killed run wrote past its checkpoint is written again: the old is purged.
            writer = self._make(str(folder / "tensorboard"), purge_step=step)
            writer.add_text("spec", f"```\n{said}\n```", step)
            return writer

        self._open = open_at

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One point a scalar."""
        step = rows[0]["step"]
        if self._writer is None:
            self._writer = self._open(step)
        for key, value in step_values(rows).items():
            self._writer.add_scalar(f"step/{key}", value, step)

    def finish(self, row: Mapping[str, Any]) -> None:
        """The row's numbers as single points, all of it as text."""
        if self._writer is None:
            self._writer = self._open(row["num_steps"])
        for key, value in summary(row).items():
            self._writer.add_scalar(key, value, row["num_steps"])
        self._writer.add_text("result", f"```\n{json.dumps(row, indent=2)}\n```", row["num_steps"])

    def close(self) -> None:
        """Write what is pending."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflow:
    """A file store ``mlruns`` in the results folder, or the server that the environment names."""

    def __init__(self) -> None:
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        self._client_of = MlflowClient
        self._metric, self._param = entities.Metric, entities.Param
        self._client: Any = None
        self._id = ""
        self._known = -1
        self._done = False

    def start(self, spec: Mapping[str, Any], folder: Path) -> None:
        """A new run, or the one that an interrupted run of the same id began."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = self._client_of(uri) if uri else _file_client(self._client_of, folder.parent)
        found = self._client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(_PROJECT)
        wanted = f"tags.`{_ID}` = '{spec['run_id']}' and attributes.status != 'FINISHED'"
        earlier = self._client.search_runs([experiment], wanted, max_results=1)
        self._done = False
        if earlier:
            self._id = earlier[0].info.run_id
            history = self._client.get_metric_history(self._id, "error_pct")
            self._known = max((point.step for point in history), default=-1)
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {_ID: spec["run_id"]}
        self._id = self._client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
        self._known = -1
        params = [self._param(key, str(value)) for key, value in parameters(spec).items()]
        self._client.log_batch(self._id, params=params)

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One point a metric; those that an interrupted run has written stay."""
        if rows[0]["step"] > self._known:
            self._log(step_values(rows), rows[0]["step"])

    def finish(self, row: Mapping[str, Any]) -> None:
        """The row's numbers as metrics."""
        self._log(summary(row), row["num_steps"])
        self._done = True

    def close(self) -> None:
        """End the run; an interrupted one can be taken up."""
        if self._client is not None:
            self._client.set_terminated(self._id, "FINISHED" if self._done else "KILLED")
            self._client = None

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        made = [self._metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=made)


def _file_client(kind: Any, out: Path) -> Any:
    # MLflow 3 asks for a word before it writes files; the user said it with --log.
    with _environment(MLFLOW_ALLOW_FILE_STORE="true"):
        return kind((out / "mlruns").resolve().as_uri())


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Variables for the block where the user has not set them."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


class WandB:
    """Files in the run's folder, ``wandb``; sent only where mode or key say so."""

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = None

    def start(self, spec: Mapping[str, Any], folder: Path) -> None:
        """Offline, unless ``WANDB_MODE`` says otherwise or ``WANDB_API_KEY`` is set."""
        offline = not (os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"))
        # Its service would keep its logs in the user's cache folder.
        with _environment(WANDB_CACHE_DIR=str(folder), WANDB_DATA_DIR=str(folder)):
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=folder.name,
                id=str(spec["run_id"])[:32],
                resume="allow",
                dir=str(folder),
                config=parameters(spec),
                mode="offline" if offline else None,
                settings=self._wandb.Settings(silent=True, console="off", save_code=False),
            )

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One point a scalar."""
        self._run.log(step_values(rows), step=rows[0]["step"])

    def finish(self, row: Mapping[str, Any]) -> None:
        """The whole row as summary."""
        self._run.summary.update(dict(row) | summary(row))

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
