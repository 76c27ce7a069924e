"""What differs between two sets of weights: diffs of adapted models, checkpoints, source models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.errors import UsageError
from tta import export
from tta.backbones import load, read_checkpoint
from tta.export_states import digest, same_bits


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        title: In words.
        tensors: Names in the source model -> values; of a diff those that it changes.
        bytes: Size of the file, or of the tensors of a named model.
        diff: The diff, where it is one.
        weight_hash: Of a named model.
    """

    title: str
    tensors: Mapping[str, Tensor]
    bytes: int
    diff: export.Diff | None = None
    weight_hash: str | None = None


def read_side(word: str) -> Side:
    """A diff, a weight file, or a backbone by name.

    Raises:
        UsageError: If it is none of them.
        tta.AdapterError: If the file is damaged.
    """
    path = Path(word)
    if path.is_file():
        size = path.stat().st_size
        if not export.is_diff(path):
            return Side(f"{path} (weights)", read_checkpoint(path), size)
        diff = export.read(path)
        about = diff.about
        own = {
            name.removeprefix(about.prefix): value
            for name, value in diff.tensors.items()
            if name.startswith(about.prefix)
        }
        if own.keys() != about.changes.keys():
            raise UsageError(f"{path}: its tensors are not those it describes; export it again")
        return Side(f"{path} ({about.method}, {about.steps} steps)", own, size, diff)
    if path.suffix in (".safetensors", ".pt", ".pth") or len(path.parts) > 1:
        raise UsageError(f"{word}: no such file; give a diff, a weight file or a backbone's name")
    backbone = load(word)
    model: Any = backbone.model
    tensors = {**dict(model.model.named_parameters()), **dict(model.model.named_buffers())}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    return Side(f"{word} (backbone)", tensors, size, weight_hash=backbone.weight_hash)


def compare(a: Side, b: Side) -> dict[str, Any]:
    """How far two sides are apart; relative numbers are to ``b``, or to the source of two diffs.

    Returns:
        ``a``, ``b``, their ``bytes``; ``source`` (hash, where known), ``tensors`` compared,
        ``changed``; ``l2`` and ``relative`` over all; ``layers``, the largest change first;
        ``only_a``, ``only_b``: names; ``states`` that differ, of diffs.

    Raises:
        UsageError: If a diff was made against another source.
    """
    if a.diff is None and b.diff is not None:
        return compare(b, a)
    if a.diff is None:
        layers, whole = _plain(a, b)
    elif b.diff is None:
        layers, whole = _against_source(a, a.diff, b)
    else:
        layers, whole = _diffs(a, a.diff, b, b.diff)
    layers.sort(key=lambda layer: (-layer["l2"], layer["name"]))
    l2 = sum(layer["l2"] ** 2 for layer in layers) ** 0.5
    norm = whole.pop("norm")
    return {
        "a": a.title,
        "b": b.title,
        "bytes_a": a.bytes,
        "bytes_b": b.bytes,
        **whole,
        "changed": len(layers),
        "l2": l2,
        "relative": l2 / norm if norm else None,
        "layers": layers,
    }


def _plain(a: Side, b: Side) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    both = [name for name in b.tensors if name in a.tensors]
    if not both:
        raise UsageError(f"{a.title} and {b.title} have no tensor in common: is it the same model?")
    for name in both:
        if a.tensors[name].shape != b.tensors[name].shape:
            shapes = f"{tuple(a.tensors[name].shape)} and {tuple(b.tensors[name].shape)}"
            raise UsageError(f"{name!r} has shapes {shapes}: these are different models")
    layers = [
        _layer(name, a.tensors[name], b.tensors[name])
        for name in both
        if not same_bits(a.tensors[name], b.tensors[name])
    ]
    return layers, {
        "source": b.weight_hash,
        "tensors": len(both),
        "only_a": sorted(a.tensors.keys() - b.tensors.keys()),
        "only_b": sorted(b.tensors.keys() - a.tensors.keys()),
        "states": [],
        "norm": _norm(b.tensors.values()),
    }


def _against_source(
    a: Side, diff: export.Diff, b: Side
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    about = diff.about
    wrong = b.weight_hash not in (None, about.source)
    for name in a.tensors:
        there = b.tensors.get(name)
        wrong |= there is not None and digest(there) != about.changes[name][2]
    known = [name for name in a.tensors if name in b.tensors]
    if wrong or (a.tensors and not known):
        raise UsageError(
            f"{a.title} was made against the source weights {about.source[:16]}, not against "
            f"{b.title}"
        )
    layers = [_layer(name, a.tensors[name], b.tensors[name]) for name in known]
    return layers, {
        "source": about.source,
        "tensors": len(b.tensors),
        "only_a": sorted(a.tensors.keys() - b.tensors.keys()),
        "only_b": [],
        "states": sorted(about.states),
        "norm": _norm(b.tensors.values()),
    }


def _diffs(
    a: Side, diff_a: export.Diff, b: Side, diff_b: export.Diff
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    first, second = diff_a.about, diff_b.about
    if first.source != second.source:
        raise UsageError(
            f"{a.title} was made against the source weights {first.source[:16]}, {b.title} against "
            f"{second.source[:16]}: they cannot be compared"
        )
    layers = []
    for name in {**a.tensors, **b.tensors}:
        if name in a.tensors and name in b.tensors:
            if not same_bits(a.tensors[name], b.tensors[name]):
                layers.append(_layer(name, a.tensors[name], b.tensors[name]))
            continue
        # The other side has the source's tensor, which is not here: the file says how far it is.
        side, about = (a, first) if name in a.tensors else (b, second)
        change, norm, _ = about.changes[name]
        layers.append(_row(name, change, norm, side.tensors[name]))
    states = {**first.states, **second.states}
    return layers, {
        "source": first.source,
        "tensors": first.source_tensors,
        "only_a": sorted(a.tensors.keys() - b.tensors.keys()),
        "only_b": sorted(b.tensors.keys() - a.tensors.keys()),
        "states": sorted(k for k in states if first.states.get(k) != second.states.get(k)),
        "norm": first.source_norm,
    }


def _layer(name: str, a: Tensor, b: Tensor) -> dict[str, Any]:
    a, b = a.detach().double(), b.detach().double()
    return _row(name, float((a - b).norm()), float(b.norm()), a)


def _row(name: str, l2: float, norm: float, value: Tensor) -> dict[str, Any]:
    relative = l2 / norm if norm else None
    return {"name": name, "l2": l2, "relative": relative, "elements": value.numel()}


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))
