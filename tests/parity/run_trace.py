"""Replay a golden trace of an original implementation in float64 and print the largest difference.

    python tests/parity/run_trace.py TRACE.npz --data DIR --weights FILE

Method, hyper-parameters, architecture, images, batches and resets come from the trace's ``meta``.
Exit status 0 within the tolerance, 1 beyond it, 2 for a trace that cannot be replayed.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import mapping

import tta
from tta.architectures import CifarResNet, depth_of
from tta.backbones import Normalized, read_checkpoint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# What a file that is no trace raises, wherever it is not one.
UNREADABLE = (ValueError, OSError, LookupError, TypeError, AttributeError, EOFError, BadZipFile)
UNREADABLE += (NotImplementedError, RuntimeError, MemoryError, zlib.error, struct.error)


def read_meta(trace: Path) -> dict[str, Any]:
    """What a trace says of itself.

    Raises:
        ValueError: If it is no trace, or names data or weights outside their folders.
    """
    meta = json.loads(str(np.load(trace, allow_pickle=False)["meta"]))
    names = [part["key"] for part in meta["stream"]] + [meta.get("weights", "w")]
    if strange := [name for name in names if Path(name).name != name]:
        raise ValueError(f"the trace names {strange[0]!r}, which is no file of its own")
    return meta


def build_model(meta: dict[str, Any], weights: Path) -> torch.nn.Module:
    """The trace's network in float64, its normalisation inside.

    Raises:
        ValueError: If the architecture or the normalisation is not one that this script knows.
    """
    depth = depth_of(meta["model"])
    if depth is None or "ImageNet" not in meta["normalisation"]:
        raise ValueError(f"cannot build {meta['model']!r} with {meta['normalisation']!r}")
    from tta.architectures import rename_public_keys

    net = CifarResNet(depth)
    net.load_state_dict(rename_public_keys(read_checkpoint(weights)))
    return Normalized(net.double().eval(), IMAGENET_MEAN, IMAGENET_STD)


def batches(meta: dict[str, Any], data: Path) -> Iterator[Tensor]:
    """The trace's batches as float64 images ``(B, 3, 32, 32)`` in ``[0, 1]``."""
    for part in meta["stream"]:
        stem, _, severity = part["key"].rpartition("_")
        stem = stem if severity.isdigit() else part["key"]
        images = np.load(data / "cifar10c" / f"{stem}.npy", mmap_mode="r", allow_pickle=False)
        for first in range(part["first"], part["stop"], meta["batch_size"]):
            stop = min(first + meta["batch_size"], part["stop"])
            x = torch.from_numpy(np.array(images[first:stop])).permute(0, 3, 1, 2)
            yield x.contiguous().double() / 255


def source_batches(meta: dict[str, Any], data: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """The clean images that the trace's ``replaced`` names, with labels, in batches.

    Raises:
        ValueError: If it names none.
    """
    named = re.search(r"clean test images (\d+)\.\.(\d+)", meta["replaced"])
    if named is None:
        raise ValueError("the method needs source images and the trace names none")
    first, stop = int(named[1]), int(named[2]) + 1
    images = np.load(data / "cifar10c" / "clean.npy", mmap_mode="r", allow_pickle=False)[first:stop]
    labels = np.load(data / "cifar10c" / "labels.npy", allow_pickle=False)[first:stop]
    size = meta["hyperparameters"].get("fisher_batch", meta["batch_size"])
    for start in range(0, len(images), size):
        x = torch.from_numpy(np.array(images[start : start + size])).permute(0, 3, 1, 2)
        y = torch.from_numpy(np.array(labels[start : start + size])).long()
        yield x.contiguous().double() / 255, y


def noise_floor(trace: Path) -> float | None:
    """What a trace without float64 output can prove: the reference's own differences in float32.

    Returns:
        The largest difference of logits that the trace's meta states between two runs of the
        reference (other thread counts, inputs scaled by 1 + 1e-7); ``None`` if there is a float64
        output.

    Raises:
        ValueError: If it states none.
    """
    arrays = np.load(trace, allow_pickle=False)
    if "f64/logits" in arrays:
        return None
    meta = json.loads(str(arrays["meta"]))
    stated = [v for key, v in meta.items() if key.startswith("max_abs_diff_logits_")]
    if not stated:
        raise ValueError("the trace has no float64 output and states no noise floor")
    return float(max(stated))


def replay(trace: Path, data: Path, weights: Path) -> float:
    """Largest absolute difference to the trace's float64 output over all steps.

    Where the method's map names adapted tensors, those that the trace stores count too: after each
    step (``f64/steps/...``) and at the end (``f64/final/...``). A trace without float64 output is
    replayed in float32, and only its logits are compared: see ``noise_floor``.

    Raises:
        ValueError: If the trace asks for something that cannot be replayed.
    """
    arrays = np.load(trace, allow_pickle=False)
    meta = read_meta(trace)
    method, options = mapping.adapter_of(meta)
    sibling = weights.parent / meta.get("weights", weights.name)
    weights = sibling if sibling.exists() else weights
    prefix, dtype = ("f64/", torch.float64) if "f64/logits" in arrays else ("", torch.float32)
    model = build_model(meta, weights).to(dtype)
    adapter = tta.wrap(model, method, inplace=True, **options)
    if adapter.needs.source_data and "clean test images" in meta["replaced"]:
        adapter.fit_source(source_batches(meta, data))
    mapping.install(adapter, meta | {"data_folder": str(data)}, arrays)
    resets = mapping.external_resets(meta)
    wanted = arrays[f"{prefix}logits"]
    compare = _Tensors(adapter, arrays) if prefix else None
    worst = 0.0
    steps = 0
    with torch.no_grad():
        for step, x in enumerate(batches(meta, data)):
            got = adapter(x.to(dtype)).numpy()
            if not np.isfinite(got).all():
                return float("inf")
            worst = max(worst, float(np.abs(got - wanted[step][: len(got)]).max()))
            if compare is not None:
                worst = max(worst, compare.after_step(step))
            steps += 1
            if steps in resets:
                adapter.reset()
    if steps != len(wanted):
        raise ValueError(f"the stream has {steps} batches, the trace {len(wanted)}")
    return worst if compare is None else max(worst, compare.at_the_end())


class _Tensors:
    """Differences of the tensors that a map names to those that the trace stores in float64."""

    def __init__(self, adapter: tta.Adapter, arrays: Any) -> None:
        self.adapter = adapter
        self.arrays = arrays

    def after_step(self, step: int) -> float:
        return self._worst("f64/steps/", lambda stored: stored[step])

    def at_the_end(self) -> float:
        return self._worst("f64/final/", lambda stored: stored)

    def _worst(self, prefix: str, pick: Callable[[Any], Any]) -> float:
        worst = 0.0
        for name, tensor in mapping.tensors(self.adapter).items():
            if f"{prefix}{name}" in self.arrays:
                away = np.abs(tensor.numpy() - pick(self.arrays[f"{prefix}{name}"])).max()
                worst = max(worst, float(away)) if np.isfinite(away) else float("inf")
        return worst


def main() -> int:
    """Parse the arguments, replay, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10c/")
    parser.add_argument(
        "--weights", type=Path, required=True, help="checkpoint; its folder holds the others"
    )
    parser.add_argument("--tolerance", type=float, default=1e-8)
    arguments = parser.parse_args()
    try:
        floor = noise_floor(arguments.trace)
        worst = replay(arguments.trace, arguments.data, arguments.weights)
    except UNREADABLE as error:
        print(f"cannot replay {arguments.trace.name}: {type(error).__name__}: {error}")
        return 2
    if floor is not None:
        print(
            f"max_abs_diff_float32={worst:.3e} (no float64 trace; tolerance {floor:.3e}, the "
            "reference's own largest difference between float32 runs)"
        )
        return int(not worst <= floor)
    print(f"max_abs_diff_float64={worst:.3e}")
    return int(not worst <= arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
