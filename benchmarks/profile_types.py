"""What a profile is asked for, and the row that it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.layout import Choice
from benchmarks.profile_feed import STREAM
from tta import execution


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
        plain: Also time the same step as reference implementations run it; see
            ``benchmarks.profile_plain``.
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
