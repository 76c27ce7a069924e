"""Ship what adaptation changed: a small file against the source model, and the way back.

    export.save(adapter, source, "fog.safetensors")     # here
    adapter = export.load("fog.safetensors", source)    # there: the same answers, bit for bit
    adapter.reset()                                     # the source model's state again

The file holds the tensors that differ from the source model and the states that the method
declared, with the hash of the source weights; the moments of the optimiser stay behind. It is a
safetensors file: reading it runs no code.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tta import norm_layers
from tta.adapter import Adapter
from tta.backbones import Normalized, weight_hash
from tta.checkpoints import check_file
from tta.errors import AdapterError
from tta.export_states import decode, digest, encode, same_bits
from tta.factory import adapter_config, create_adapter
from tta.masking import Masked

FORMAT = "tta-bench-diff-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What a diff says of itself.

    Attributes:
        source: ``weight_hash`` of the source model.
        method: Name of the method.
        config: Its options.
        window: See ``tta.wrap``.
        norm: Kind and options of replaced layers, as ``norm_layers.describe`` words them.
        norm_layer: The same as data: ``{"kind": …, "options": …}``; empty without.
        version: Version of tta-bench that wrote the file.
        steps: Batches that the adapter had seen.
        prefix: What stands before the source model's names in the tensors' names.
        source_tensors: Tensors of the source model.
        source_bytes: Their size.
        source_norm: L2 norm of all of its floating tensors.
        changes: Name of each changed tensor of the source model -> L2 norm of the change, L2 norm
            and digest of the source's.
        states: States that differ from those of a fresh adapter, as ``export_states`` writes them.
        fitted: The same of the state that ``fit_source`` left; ``None`` where it was not called.
    """

    source: str
    method: str
    config: dict[str, Any]
    window: int
    norm: str
    norm_layer: dict[str, Any]
    version: str
    steps: int
    prefix: str
    source_tensors: int
    source_bytes: int
    source_norm: float
    changes: dict[str, tuple[float, float, str]]
    states: dict[str, Any]
    fitted: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """A file that was read.

    Attributes:
        about: What it says of itself.
        tensors: Name in the adapter -> value, of the tensors that differ from the source.
        fitted: The same of the state that ``fit_source`` left.
        stored: Tensors inside of states, by their digest.
    """

    about: About
    tensors: dict[str, Tensor]
    fitted: dict[str, Tensor]
    stored: dict[str, Tensor]


def save(adapter: Adapter, source: nn.Module, path: Path | str) -> About:
    """Write what ``adapter`` differs in from ``source``; the file appears whole or not at all.

    Args:
        adapter: An adapter between two steps.
        source: The model that it was made from, as it was then.
        path: The file.

    Raises:
        AdapterError: If the adapter was not made from this model, or holds NaN or infinite weights.
    """
    from safetensors.torch import save_file

    path = Path(path)
    about = _about(adapter, source)
    fresh = _fresh(source, about, adapter.name)
    own, base = _tensors(adapter), _tensors(fresh)
    _check_made_from(adapter, own, base)
    tensors: dict[str, Tensor] = {}
    changes: dict[str, tuple[float, float, str]] = {}
    for name, value in own.items():
        if same_bits(value, base[name]):
            continue
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise AdapterError(f"{name!r} of the adapter holds NaN or infinite values: reset it")
        tensors[f"now/{name}"] = value
        if name.startswith(about.prefix):
            gap = (value.double() - base[name].double()).norm()
            change = (float(gap), float(base[name].double().norm()), digest(base[name]))
            changes[name.removeprefix(about.prefix)] = change
    states, first = fresh._snapshot()["states"], adapter._initial
    said: dict[str, Any] = {"changes": changes}
    said["states"] = _encoded(adapter, _declared(adapter), states, tensors)
    if adapter.source_fitted:
        said["fitted"] = _encoded(adapter, first["states"], states, tensors)
        for name, value in first["tensors"].items():
            if not same_bits(value, base[name]):
                tensors[f"fitted/{name}"] = value.detach().cpu()
    written = asdict(about) | said
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(
            {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
            part,
            {"format": FORMAT, "about": json.dumps(written)},
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return About(**written)


def read(path: Path | str) -> Diff:
    """Read a diff; no code of the file runs.

    Raises:
        AdapterError: If it is missing, damaged, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        line = str(error).splitlines()[0][:100]
        raise AdapterError(f"{path}: truncated or not a safetensors file ({line})") from None
    if said.get("format") != FORMAT:
        found = said.get("format", "plain weights")
        raise AdapterError(f"{path}: not a diff of this version ({found}); it must be {FORMAT}")
    try:
        about = About(**json.loads(said["about"]))
        _check(about)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, RecursionError):
        raise AdapterError(f"{path}: its description is damaged; export it again") from None
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "fitted": {}, "state": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise AdapterError(f"{path}: holds {key!r}, which no diff has; export it again")
        parts[part][name] = value
    return Diff(about=about, tensors=parts["now"], fitted=parts["fitted"], stored=parts["state"])


def is_diff(path: Path | str) -> bool:
    """Whether a file says that it is a diff, of this version or another."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return str(said.get("format", "")).startswith(FORMAT.rpartition("-")[0])


def load(path: Path | str, source: nn.Module) -> Adapter:
    """The adapter of a diff, on a copy of ``source``: it answers as the exported one, bit for bit.

    Args:
        path: A file that ``save`` wrote.
        source: The same model, with the same weights, in the same dtype; on any device.

    Returns:
        Its optimiser starts without moments; ``reset`` goes back to the source model, or to what
        ``fit_source`` had made of it.

    Raises:
        AdapterError: If the file cannot be read or does not belong to these weights.
    """
    diff = read(path)
    found = weight_hash(source)
    if found != diff.about.source:
        raise AdapterError(
            f"{path} was made against the source weights {diff.about.source[:16]}, this model has "
            f"{found[:16]}: load it onto the model that was adapted"
        )
    device = next((p.device for p in source.parameters()), torch.device("cpu"))
    adapter = _fresh(source, diff.about, str(path)).to("cpu")
    if diff.about.fitted is not None:
        adapter.load_source_state(_merged(adapter, diff.fitted, diff.about.fitted, diff, path))
    adapter._restore(_merged(adapter, diff.tensors, diff.about.states, diff, path))
    return adapter.to(device)


def undo(adapter: Adapter, source: nn.Module) -> None:
    """Make the adapter what it was when ``source`` was wrapped, bit for bit; ``fit_source`` too.

    Raises:
        AdapterError: If the adapter was not made from this model.
    """
    fresh = _fresh(source, _about(adapter, source), adapter.name)
    _check_made_from(adapter, _tensors(adapter), _tensors(fresh))
    state = fresh._snapshot()
    state["states"] = {**adapter._initial["states"], **state["states"]}
    adapter._restore(state)
    adapter._keep_initial()
    adapter._fitted = {}


def _declared(adapter: Adapter) -> dict[str, Any]:
    """The declared states as they are."""
    return {name: getattr(adapter, name) for name in adapter._states}


def _about(adapter: Adapter, source: nn.Module) -> About:
    live = {id(p) for p in adapter.parameters()}
    if any(id(p) in live for p in source.parameters()):
        raise AdapterError("the source model given is the adapted one itself: load it anew")
    prefix, inner = "model.", source
    while isinstance(inner, (Normalized, Masked)):
        prefix, inner = f"{prefix}model.", inner.model
    layers = norm_layers.find(adapter.model)
    kept = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    floats = [value.detach().double().norm() for value in kept.values() if value.numel()]
    return About(
        source=weight_hash(source),
        method=adapter.name,
        config=adapter.config.to_dict(),
        window=adapter._window,
        norm=norm_layers.describe(adapter.model),
        norm_layer={"kind": layers[0].kind, "options": layers[0].options()} if layers else {},
        version=_version(),
        steps=adapter.num_steps,
        prefix=prefix,
        source_tensors=len(kept),
        source_bytes=sum(value.numel() * value.element_size() for value in kept.values()),
        source_norm=float(torch.stack(floats).norm()) if floats else 0.0,
        changes={},
        states={},
        fitted=None,
    )


def _fresh(source: nn.Module, about: About, who: str) -> Adapter:
    """The adapter as it was made, before its first batch."""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in about.config.items()}
    config = adapter_config(about.method).create(values)
    layer: dict[str, Any] = about.norm_layer
    norms = [(None, None)] + ([(layer["kind"], layer["options"])] if layer else [])
    for norm, options in norms:  # some methods replace the layers themselves
        made = create_adapter(
            about.method,
            copy.deepcopy(source),
            config,
            norm=norm,
            norm_options=options,
            window=about.window,
        )
        if norm_layers.describe(made.model) == about.norm:
            return made
    raise AdapterError(f"{who}: the layers of the model cannot be replaced as its were")


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    named = {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}
    return {name: value.detach().cpu() for name, value in named.items()}


def _check_made_from(
    adapter: Adapter, own: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> None:
    moving = {name for name, _ in adapter._mutable_tensors()}
    odd = [
        name
        for name in sorted(own.keys() | base.keys())
        if name not in own
        or name not in base
        or own[name].shape != base[name].shape
        or (name not in moving and not same_bits(own[name], base[name]))
    ]
    if odd:
        raise AdapterError(
            f"the adapter was not made from this source model: {odd[0]!r} differs"
            + (f", and {len(odd) - 1} more" if odd[1:] else "")
        )


def _encoded(
    adapter: Adapter, now: Mapping[str, Any], fresh: Mapping[str, Any], into: dict[str, Tensor]
) -> dict[str, Any]:
    """States that differ from the fresh ones; their tensors go into ``into`` by digest."""
    said = {}
    for name, value in now.items():
        if name not in fresh:  # of something put around the method, such as a guard
            continue
        stored: dict[str, Tensor] = {}
        try:
            written = encode(value, stored)
        except TypeError as error:
            raise AdapterError(f"state {name!r} of {adapter.name}: {error}") from None
        if written != encode(fresh[name], {}):
            said[name] = written
            into.update({f"state/{key}": tensor for key, tensor in stored.items()})
    return said


def _merged(
    adapter: Adapter,
    tensors: Mapping[str, Tensor],
    states: Mapping[str, Any],
    diff: Diff,
    path: Path | str,
) -> dict[str, Any]:
    """A snapshot for ``adapter``: its own, with what the file has put in."""
    snapshot = adapter._snapshot()
    for name, value in tensors.items():
        here = snapshot["tensors"].get(name)
        if here is None or here.shape != value.shape or here.dtype != value.dtype:
            raise AdapterError(f"{path}: {name!r} does not fit {adapter.name} on this model")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise AdapterError(f"{path}: {name!r} holds NaN or infinite values")
        snapshot["tensors"][name] = value
    for name, written in states.items():
        if name not in snapshot["states"]:
            raise AdapterError(f"{path}: {adapter.name} has no state {name!r}")
        try:
            snapshot["states"][name] = decode(written, diff.stored)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise AdapterError(f"{path}: state {name!r} is damaged; export it again") from None
    return snapshot


def _check(about: About) -> None:
    """Types of what a file says; ``TypeError`` for a wrong one."""
    adapter_config(about.method)
    for name, kind in (("config", dict), ("norm_layer", dict), ("changes", dict), ("states", dict)):
        if not isinstance(getattr(about, name), kind):
            raise TypeError(name)
    if not isinstance(about.source, str) or not isinstance(about.window, int):
        raise TypeError("source")


def _version() -> str:
    try:
        return version("tta-bench")
    except PackageNotFoundError:
        return "unknown"
