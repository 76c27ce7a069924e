"""One run, fully said: a protocol and what goes over it."""

from __future__ import annotations

import difflib
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from benchmarks.errors import UsageError
from benchmarks.protocols import Protocol, presets, protocol_for, protocols
from streams.corruptions.names import CORRUPTIONS
from streams.scan import scan

# What a machine knows and a number does not depend on.
_LOCAL = {"data_dir", "checkpoint", "source_dir"}
_PROTOCOL_FIELDS = (
    *("corruptions", "severity", "batch_size", "shuffle", "num_examples"),
    *("setting_options", "order", "source_options", "open_set", "open_ratio", "skip_examples"),
)
# Fields that came later: a run that leaves them alone keeps its identity.
_LATER: dict[str, Any] = {
    "open_set": None,
    "open_ratio": 1.0,
    "skip_examples": 0,
    "tuned_trials": None,
    "tuned_on": None,
    "norm": None,
    "norm_options": {},
    "window": 1,
    "guard": None,
    "budget": None,
    "source_images": 2000,
    "mean": None,
    "std": None,
    "layout": "auto",
    "amp": None,
    "compiled": False,
}
# Which of several matrices CCC walks over is said by provenance and hash of the stream.
_NAMED_ELSEWHERE = "matrix"


class RunSpec(BaseModel):
    """Everything that fixes the numbers of one run; ``resolve`` builds it.

    Attributes:
        protocol: Id of the protocol, followed by ``+field=value`` for what differs from it.
        config: The method's options, complete: defaults, then the preset, then ``--set``.
        skip_examples: Images of each domain that are kept aside: ``num_examples`` counts from here.
        tuned_trials: Configurations that ``tune`` tried to find this config; ``None``: not tuned.
        tuned_on: Protocol and hash of the tuning stream.
        norm: What takes the place of the BatchNorm layers (``tta.wrap``).
        norm_options: Options of that layer.
        window: Length of the sliding window for smaller batches (``tta.wrap``).
        guard: Options of the guard, complete; ``None``: no guard.
        budget: Limits of the adaptation, complete; ``None``: none.
        source_images: At most so many clean images for a method that needs source data.
        source_dir: Folder of the training images for such a method; ``data_dir`` where ``None``.
        mean: Channel means inside the model, in [0, 1]; ``None``: the backbone's own.
        std: Channel standard deviations inside the model; ``None``: the backbone's own.
        layout: Memory layout of the model (``benchmarks.layout``).
        amp: ``bf16``: the network computes under autocast.
        compiled: The network is compiled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    method: str
    config: dict[str, Any]
    stream: str
    setting: str
    corruptions: tuple[str, ...]
    severity: tuple[int, ...]
    num_examples: int | None = Field(ge=1)
    setting_options: dict[str, float | int | str] = {}
    order: str = "default"
    source_options: dict[str, int | str | None] = {}
    open_set: str | None = None
    open_ratio: float = Field(default=1.0, gt=0)
    skip_examples: int = Field(default=0, ge=0)
    tuned_trials: int | None = Field(default=None, ge=1)
    tuned_on: str | None = None
    norm: str | None = None
    norm_options: dict[str, float | int | str] = {}
    window: int = Field(default=1, ge=1)
    guard: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    source_images: int = Field(default=2000, ge=1)
    batch_size: int = Field(ge=1)
    shuffle: bool
    backbone: str
    checkpoint: str | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Literal["auto", "own", "contiguous", "channels-last"] = "auto"
    amp: Literal["bf16"] | None = None
    compiled: bool = False
    seed: int = Field(ge=0)
    device: str
    dtype: Literal["float32", "float64"]
    data_dir: str | None
    source_dir: str | None = None

    def identity(self, *context: str) -> str:
        """Hex digest of all that fixes the numbers, local paths left out, and of ``context``."""
        fields = self.model_dump(mode="json", exclude=_LOCAL)
        fields["source_options"].pop(_NAMED_ELSEWHERE, None)
        fields = {k: v for k, v in fields.items() if k not in _LATER or v != _LATER[k]}
        text = json.dumps([fields, *context], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def resolve(
    method: str,
    stream: str,
    *,
    protocol: str | None = None,
    setting: str | None = None,
    options: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    checkpoint: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    data_dir: str | None = None,
    norm: str | None = None,
    norm_options: Mapping[str, Any] | None = None,
    window: int = 1,
    guard: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
    source_images: int = 2000,
    source_dir: str | None = None,
    layout: str = "auto",
    amp: str | None = None,
    compiled: bool = False,
    **overrides: Any,
) -> RunSpec:
    """A complete spec from a few words.

    Args:
        method: A name of ``tta.list_adapters()``.
        stream: A name of ``streams.list_streams()``.
        protocol: Id of a protocol; by default the newest of stream and setting.
        setting: A name of ``streams.list_settings()``; ``continual`` by default.
        options: Fields of the method's config, as values or as text.
        backbone: A spec of ``tta.backbones.load``; the protocol's by default.
        checkpoint: Weights file of the backbone.
        mean: Channel means in [0, 1] instead of the backbone's own.
        std: Channel standard deviations instead of the backbone's own.
        seed: Seed of the order and of the method.
        device: Torch device.
        dtype: ``float32`` or ``float64``.
        data_dir: Folder of the data.
        norm: As in ``tta.wrap``.
        norm_options: As in ``tta.wrap``.
        window: As in ``tta.wrap``.
        guard: Options of ``tta.guard.GuardConfig``, as values or as text; ``None``: no guard.
        budget: Options of ``tta.budget.BudgetConfig``, likewise.
        source_images: At most so many clean images for a method that needs source data.
        source_dir: Folder of the training images for such a method.
        layout: ``auto``, ``own``, ``contiguous`` or ``channels-last``.
        amp: ``bf16`` or ``None``.
        compiled: Compile the network.
        **overrides: ``corruptions``, ``severity``, ``batch_size``, ``shuffle``, ``num_examples``,
            ``setting_options``, ``order``, ``source_options``, ``open_set``, ``open_ratio``,
            ``skip_examples``; ``None`` keeps the protocol's.

    Raises:
        UsageError: For a wrong name or value, with the nearest valid name.
        tta.AdapterError: For a wrong method or method option.
    """
    import tta

    base = _LATER | _protocol(protocol, stream, setting)
    if protocol is not None:
        stream, setting = base["stream"], base["setting"]
    given = {key: value for key, value in overrides.items() if value is not None}
    if unknown := sorted(set(given) - set(_PROTOCOL_FIELDS)):
        raise UsageError(f"unknown field {unknown[0]!r}; a run takes {', '.join(_PROTOCOL_FIELDS)}")
    if "open_ratio" in given and not given.get("open_set", base["open_set"]):
        raise UsageError("open_ratio has no effect without open_set: give both")
    if given.get("setting_options"):
        from streams.settings import changed_options

        given["setting_options"] = changed_options(base["setting"], given["setting_options"])
    changed = {
        key: given[key]
        for key in _PROTOCOL_FIELDS
        if key in given and _plain(given[key]) != _plain(base[key])
    }
    config_type = tta.adapter_config(method)
    preset = presets().get(method, {}).get(stream, {})
    values = {"seed": seed} | preset | parse_options(config_type, options or {})
    config = config_type.create({key: _tuples(value) for key, value in values.items()})
    chosen = backbone or base["backbone"]
    if chosen is None:
        raise UsageError(f"stream {stream!r} has no default backbone: name one with --backbone")
    fields = {key: changed.get(key, base[key]) for key in _PROTOCOL_FIELDS}
    try:
        return RunSpec(
            protocol="+".join([base["id"], *_said(changed)]),
            method=method.replace("_", "-"),
            config=config.to_dict(),
            stream=stream,
            setting=base["setting"],
            backbone=chosen,
            checkpoint=checkpoint,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
            seed=seed,
            device=device,
            dtype=dtype,
            data_dir=data_dir,
            norm=norm,
            norm_options=dict(norm_options or {}),
            window=window,
            guard=_options_of("guard", guard),
            budget=_options_of("budget", budget),
            source_images=source_images,
            source_dir=source_dir,
            layout=layout,
            amp=amp,
            compiled=compiled,
            **fields,
        )
    except ValidationError as error:
        raise UsageError(one_line(error)) from error


def default_batch_size(stream: str) -> int:
    """Batch size where no protocol says one: the literature's for the size of the images."""
    return 64 if stream.startswith("imagenet") or stream == "ccc" else 200


def parse_options(config_type: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Read options given as text into the types of the config's fields.

    Raises:
        UsageError: For text that is not of the field's type.
    """
    hints = typing.get_type_hints(config_type)
    read = {}
    for key, value in options.items():
        if key in hints and isinstance(value, str):
            hint = hints[key]
            raw: Any = None if value.lower() == "none" else value
            if typing.get_origin(hint) is tuple and raw is not None:
                raw = [item.strip() for item in value.strip("()[]").split(",") if item.strip()]
            try:
                value = TypeAdapter(hint).validate_python(raw)
            except ValidationError as error:
                raise UsageError(f"{key}={options[key]!r}: {one_line(error)}") from error
        read[key] = value
    return read


def one_line(error: ValidationError) -> str:
    """The first problem of a validation, in words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}={first['input']!r}: {first['msg']}" if where else first["msg"]


def _protocol(protocol: str | None, stream: str, setting: str | None) -> dict[str, Any]:
    found: Protocol | None
    if protocol is not None:
        if protocol not in protocols():
            near = difflib.get_close_matches(protocol, protocols(), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UsageError(
                f"unknown protocol {protocol!r}{hint}; known: {', '.join(protocols())}"
            )
        found = protocols()[protocol]
        if stream != found.stream:
            raise UsageError(f"protocol {protocol!r} is of {found.stream}, not of {stream!r}")
        if setting not in (None, found.setting):
            raise UsageError(f"protocol {protocol!r} is {found.setting}, not {setting!r}")
    else:
        scan("streams.sources", "stream").check(stream)
        scan("streams.settings", "setting").check(setting or "continual")
        found = protocol_for(stream, setting or "continual")
    if found is not None:
        return found.model_dump() | {"id": found.id}
    return {
        "id": f"custom-{stream}-{setting or 'continual'}",
        "stream": stream,
        "setting": setting or "continual",
        "corruptions": CORRUPTIONS,
        "severity": (5,),
        "batch_size": default_batch_size(stream),
        "shuffle": True,
        "num_examples": None,
        "setting_options": {},
        "order": "default",
        "source_options": {},
        # The one that the stream's protocols use, where it has any.
        "backbone": next((p.backbone for p in protocols().values() if p.stream == stream), None),
    }


def _said(changed: Mapping[str, Any]) -> list[str]:
    """``field=value`` of what differs from a protocol."""
    said = dict(changed)
    if source := said.get("source_options"):
        said["source_options"] = {k: v for k, v in source.items() if k != _NAMED_ELSEWHERE}
        if not said["source_options"]:
            del said["source_options"]
    return [f"{key}={_plain(value)}" for key, value in said.items()]


def _options_of(name: str, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """All options of a guard or a budget; ``None`` where none is asked for."""
    if given is None:
        return None
    from tta.budget import BudgetConfig
    from tta.guard import GuardConfig, as_config

    config_type = GuardConfig if name == "guard" else BudgetConfig
    read = parse_options(config_type, given)
    return (as_config(read) if name == "guard" else config_type.create(read)).to_dict()


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in sorted(value.items()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
