"""One run on a learning stream, fully said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.errors import UsageError
from benchmarks.learning_method import LEARNER, Method
from benchmarks.spec import one_line

# What a machine knows and a number does not depend on.
_LOCAL = {"data_dir", "checkpoint"}
Value = float | int | str


class LearningSpec(BaseModel):
    """Everything that fixes the numbers of one run; ``resolve_learning`` builds it.

    Attributes:
        protocol: ``learn-<stream>-<setting>-v1`` and ``+field=value`` for what differs from it.
        method: Parts joined by ``+``.
        config: Options of each part, complete: ``learner``, strategies, adapter; arguments of an
            Avalanche strategy as text under ``avalanche``.
        num_tasks: Number of tasks; ``None``: the stream's own.
        num_examples: Training images of each task at most.
        source_options: Options of the set of tasks that differ from its defaults.
        setting_options: Options of the setting that differ from its defaults.
        eval_every: Training steps between looks at all tests; 0: at the end of each item alone.
        carry: Whether learning goes on from the weights that an adapter left.
        source_images: At most so many seen images for an adapter that needs source data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    method: str
    config: dict[str, dict[str, Any]]
    stream: str
    setting: str
    num_tasks: int | None = Field(default=None, ge=1)
    num_examples: int | None = Field(default=None, ge=1)
    source_options: dict[str, Value] = {}
    setting_options: dict[str, Value] = {}
    eval_every: int = Field(default=0, ge=0)
    carry: bool = True
    source_images: int = Field(default=2000, ge=1)
    backbone: str
    checkpoint: str | None = None
    seed: int = Field(ge=0)
    device: str = "cpu"
    dtype: Literal["float32"] = "float32"
    data_dir: str | None = None

    @property
    def batch_size(self) -> int:
        """New samples a training step."""
        return int(self.config[LEARNER]["batch_size"])

    def identity(self, *context: str) -> str:
        """Hex digest of all that fixes the numbers, local paths left out, and of ``context``."""
        fields = self.model_dump(mode="json", exclude=_LOCAL)
        text = json.dumps([fields, *context], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def resolve_learning(
    method: str,
    stream: str,
    *,
    setting: str | None = None,
    options: Mapping[str, str] | None = None,
    num_tasks: int | None = None,
    num_examples: int | None = None,
    batch_size: int | None = None,
    source_options: Mapping[str, Value] | None = None,
    setting_options: Mapping[str, Value] | None = None,
    eval_every: int = 0,
    carry: bool = True,
    source_images: int = 2000,
    backbone: str | None = None,
    checkpoint: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    data_dir: str | None = None,
) -> LearningSpec:
    """A complete spec from a few words.

    Args:
        method: Strategies joined by ``+``, or the path of an Avalanche strategy; an adapter for
            the unlabelled segments may be one more part (``replay+tent``).
        stream: A name of ``streams.list_learning_streams()``.
        setting: A name of ``streams.list_learning_settings()``; ``sequential`` by default.
        options: ``key`` or ``part.key`` to a value as text.
        num_tasks: Number of tasks.
        num_examples: Training images of each task at most.
        batch_size: The learner's ``batch_size``.
        source_options: Options of the set of tasks.
        setting_options: Options of the setting.
        eval_every: Training steps between looks at all tests; 0: at the end of each item alone.
        carry: Whether learning goes on from the weights that an adapter left.
        source_images: At most so many seen images for an adapter that needs source data.
        backbone: ``mlp-N``, ``small-cnn``, ``slim-resnet18-N`` (fresh weights), or a spec of
            ``tta.backbones.load``; by default ``slim-resnet18-20``, and ``mlp-100`` for permuted
            images.
        checkpoint: Weights file of the backbone.
        seed: Seed of tasks, orders, weights and of every part of the method.
        device: Torch device.
        data_dir: Folder of the data.

    Raises:
        UsageError: For a wrong method, option or value, with the nearest valid name.
        streams.StreamError: For a wrong stream, setting or option of theirs.
        tta.AdapterError: For a value that a part of the method does not take.
    """
    from streams.learning_factory import learning_options, learning_setting_options
    from streams.options import changed

    setting = setting or "sequential"
    known, arranged = learning_options(stream), learning_setting_options(setting)
    said = {
        "num_tasks": num_tasks,
        "num_examples": num_examples,
        "source_options": changed(f"learning stream {stream!r}", known, source_options),
        "setting_options": changed(f"learning setting {setting!r}", arranged, setting_options),
        "eval_every": eval_every,
        "carry": carry,
    }
    parts = Method.read(method)
    given = dict(options or {})
    if batch_size is not None:
        if {"batch_size", f"{LEARNER}.batch_size"} & set(given):
            raise UsageError("--batch-size and --set batch_size say the same thing: give one")
        given[f"{LEARNER}.batch_size"] = str(batch_size)
    try:
        return LearningSpec(
            protocol="+".join([f"learn-{stream}-{setting}-v1", *_differences(said)]),
            method=parts.name,
            config=parts.config(given, seed),
            stream=stream,
            setting=setting,
            source_images=source_images,
            backbone=backbone or default_backbone(stream),
            checkpoint=checkpoint,
            seed=seed,
            device=device,
            data_dir=data_dir,
            **said,
        )
    except ValidationError as error:
        raise UsageError(one_line(error)) from error


def default_backbone(stream: str) -> str:
    """A perceptron where pixels are permuted, else a small ResNet."""
    return "mlp-100" if stream.startswith("permuted") else "slim-resnet18-20"


_DEFAULTS: dict[str, Any] = {
    "num_tasks": None,
    "num_examples": None,
    "source_options": {},
    "setting_options": {},
    "eval_every": 0,
    "carry": True,
}


def _differences(said: Mapping[str, Any]) -> list[str]:
    """``field=value`` of what is not the protocol's."""
    made = []
    for key, value in said.items():
        if value != _DEFAULTS[key]:
            if isinstance(value, Mapping):
                value = ",".join(f"{name}:{item}" for name, item in sorted(value.items()))
            made.append(f"{key}={value}")
    return made
