"""From a spec of a life to what it is lived with: stream, model, learner, adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

import tta
from benchmarks.errors import UsageError
from benchmarks.learning_method import AVALANCHE, LEARNER, SOURCE, Method
from benchmarks.learning_spec import LearningSpec
from benchmarks.machine import check_device, package_version
from continual import models
from continual.factory import create_plugins
from continual.learner import Learner, LearnerConfig
from continual.life import Life, Watch
from streams.learning_factory import create_learning
from streams.learning_types import LearningStream, Segment
from tta.backbones import load, weight_hash
from tta.checkpoints import load_weights, read_checkpoint
from tta.errors import AdapterError

Wrap = Callable[[nn.Module], tta.Adapter]
BEFORE = "before the update"


class AnyLife(Protocol):
    """What the runner needs of a life, whoever learns; ``learner.model`` is what is tested."""

    learner: Any

    def run(self, watch: Watch) -> None:
        """Live the rest of the stream."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the life depends on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class Start:
    """A model before it has met the stream.

    Attributes:
        model: Images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``.
        weights: Where its weights come from, in words.
        normalisation: What it does to its input, in words.
        drawn: Whether the seed drew some of the weights.
    """

    model: nn.Module
    weights: str
    normalisation: str
    drawn: bool


@dataclass(frozen=True)
class Prepared:
    """A spec whose stream, model and life were built: nothing has been written yet."""

    spec: LearningSpec
    stream: LearningStream
    start: Start
    weight_hash: str
    life: AnyLife
    predicts: str
    source_data: str | None
    run_id: str

    @property
    def folder_name(self) -> str:
        """Readable and unique name of the run's folder."""
        spec = self.spec
        # The packages of an Avalanche path say nothing that its class does not.
        method = "+".join(part.rpartition(":")[2] for part in spec.method.split("+"))
        parts = (method, spec.stream, spec.setting, spec.backbone, f"s{spec.seed}")
        name = "-".join(parts).replace("/", "_").replace(":", "_")
        return f"{name}-{self.run_id[:8]}"


def prepare(spec: LearningSpec) -> Prepared:
    """Build everything a run needs.

    Raises:
        UsageError: If model, method and stream do not fit, or the device is not there.
        tta.AdapterError: If the model or a part of the method cannot be had as asked.
        streams.StreamError: If the data is missing or damaged.
    """
    check_device(spec.device)
    stream = create_learning(
        spec.stream,
        setting=spec.setting,
        num_tasks=spec.num_tasks,
        num_examples=spec.num_examples,
        seed=spec.seed,
        data_dir=spec.data_dir,
        options=spec.source_options,
        setting_options=spec.setting_options,
    )
    return prepare_on(spec, stream)


def prepare_on(spec: LearningSpec, stream: LearningStream) -> Prepared:
    """As ``prepare``, on a stream that is there already."""
    method = Method.read(spec.method)
    start = starting_model(spec, stream)
    start.model.to(spec.device)
    _check_fits(start.model, spec, stream)
    digest = weight_hash(start.model)
    wrap = _wrap(method, spec)
    predicts, source_data = _check_segments(start.model, wrap, method, spec, stream)
    learner = LearnerConfig.create(tuples(spec.config[LEARNER]))
    life: AnyLife
    if method.avalanche is not None:
        from continual.avalanche import make_life

        life = make_life(
            stream,
            method.avalanche,
            start.model,
            learner=learner,
            options=spec.config[AVALANCHE],
            device=spec.device,
            seed=spec.seed,
            wrap=wrap,
            carry=spec.carry,
            eval_every=spec.eval_every,
            source_images=spec.source_images,
        )
    else:
        plugins = create_plugins(
            method.strategies, {name: tuples(spec.config[name]) for name in method.strategies}
        )
        life = Life(
            stream,
            Learner(start.model, stream.num_classes, learner, plugins, device=spec.device),
            wrap=wrap,
            carry=spec.carry,
            eval_every=spec.eval_every,
            source_images=spec.source_images,
        )
    context = [digest, stream.hash, package_version("tta-bench")]
    if method.avalanche is not None:
        context.append(package_version("avalanche-lib"))
    return Prepared(
        spec=spec,
        stream=stream,
        start=start,
        weight_hash=digest,
        life=life,
        predicts=predicts,
        source_data=source_data,
        run_id=spec.identity(*context),
    )


def starting_model(spec: LearningSpec, stream: LearningStream) -> Start:
    """The model that the spec names, in training shape: every parameter takes a gradient."""
    checkpoint = Path(spec.checkpoint) if spec.checkpoint else None
    if not models.is_model(spec.backbone):
        known = ", ".join(models.NAMES)
        try:
            backbone = load(
                spec.backbone,
                checkpoint=checkpoint,
                num_classes=stream.num_classes,
                seed=spec.seed,
            )
        except tta.BackboneError as error:
            if "unknown backbone" in str(error):
                raise UsageError(f"{error}; to learn from scratch: {known}") from error
            raise
        model = backbone.model.requires_grad_(True)
        inside = f"mean={backbone.mean} std={backbone.std}, inside the model"
        return Start(model, backbone.weights, inside, "random" in backbone.weights)
    model = models.build(spec.backbone, stream.num_classes, stream.image_shape, seed=spec.seed)
    weights = f"random, seed {spec.seed}"
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        load_weights(model, state, model_name=spec.backbone, file_name=checkpoint.name)
        weights = f"file {checkpoint.name}"
    return Start(model, weights, "none", checkpoint is None)


def _wrap(method: Method, spec: LearningSpec) -> Wrap | None:
    name = method.adapter
    if name is None or name == SOURCE:
        return None
    options = tuples(spec.config[name])
    return lambda model: tta.wrap(model, name, inplace=True, **options)


def _check_fits(model: nn.Module, spec: LearningSpec, stream: LearningStream) -> None:
    x, _ = stream.tasks[0].test.batch(np.arange(min(2, len(stream.tasks[0].test))))
    # In eval mode, as ``load`` gives it: no statistics move.
    model.eval()
    try:
        with torch.no_grad():
            logits = model(x.to(spec.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"backbone {spec.backbone} does not take images {tuple(x.shape[1:])}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if logits.shape[1] != stream.num_classes:
        raise UsageError(
            f"backbone {spec.backbone} has {logits.shape[1]} classes, stream {stream.name} has "
            f"{stream.num_classes}"
        )


def _check_segments(
    model: nn.Module,
    wrap: Wrap | None,
    method: Method,
    spec: LearningSpec,
    stream: LearningStream,
) -> tuple[str, str | None]:
    """Whether the adapter can work at all; when it predicts, and what it sees of the source."""
    if method.adapter is None:
        return BEFORE, None
    if not any(isinstance(item, Segment) for item in stream.items):
        raise UsageError(
            f"{method.adapter} adapts on unlabelled segments, and {stream.name} has none with "
            f"setting {stream.setting!r}: take --setting mixed-life, or leave it out"
        )
    if wrap is None:
        return BEFORE, None
    try:
        adapter = wrap(deepcopy(model))
    except AdapterError as error:
        raise UsageError(f"{method.adapter} on {spec.backbone}: {error}") from error
    predicts = f"{adapter.predicts} the update"
    if not adapter.needs.source_data:
        return predicts, None
    labelled = "labelled " if adapter.needs.source_labels else ""
    return predicts, f"{spec.source_images} {labelled}images of those learnt from at most"


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose lists, as JSON keeps them, are tuples again."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
