"""Replay a golden trace of an original implementation in float64 and print the largest difference.

    python tests/parity/run_trace.py TRACE.npz --data DIR --weights FILE

Method, hyper-parameters, architecture, images, batches and resets come from the trace's ``meta``.
Exit status 0 within the tolerance, 1 beyond it, 2 for a trace that cannot be replayed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        images = np.load(data / "cifar10c" / f"{stem}.npy", mmap_mode="r")
        for first in range(part["first"], part["stop"], meta["batch_size"]):
            stop = min(first + meta["batch_size"], part["stop"])
            x = torch.from_numpy(np.array(images[first:stop])).permute(0, 3, 1, 2)
            yield x.contiguous().double() / 255


def replay(trace: Path, data: Path, weights: Path) -> float:
    """Largest absolute difference to the trace's float64 output over all steps.

    Raises:
        ValueError: If the trace asks for something that cannot be replayed.
    """
    arrays = np.load(trace, allow_pickle=False)
    meta = json.loads(str(arrays["meta"]))
    method, options = mapping.adapter_of(meta)
    sibling = weights.parent / meta.get("weights", weights.name)
    weights = sibling if sibling.exists() else weights
    adapter = tta.wrap(build_model(meta, weights), method, inplace=True, **options)
    mapping.install(adapter, meta, arrays)
    resets = mapping.external_resets(meta)
    wanted = arrays["f64/logits"]
    worst = 0.0
    steps = 0
    with torch.no_grad():
        for step, x in enumerate(batches(meta, data)):
            got = adapter(x).numpy()
            if not np.isfinite(got).all():
                return float("inf")
            worst = max(worst, float(np.abs(got - wanted[step][: len(got)]).max()))
            steps += 1
            if steps in resets:
                adapter.reset()
    if steps != len(wanted):
        raise ValueError(f"the stream has {steps} batches, the trace {len(wanted)}")
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
        worst = replay(arguments.trace, arguments.data, arguments.weights)
    except (ValueError, OSError, KeyError) as error:
        print(f"cannot replay {arguments.trace.name}: {type(error).__name__}: {error}")
        return 2
    print(f"max_abs_diff_float64={worst:.3e}")
    return int(not worst <= arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
