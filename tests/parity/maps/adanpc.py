"""Options and source memory of the AdaNPC trace.

The trace stores the memory in float32, 1e-7 from what its float64 run used. Where the images are
at hand (``cifar10/train-*.parquet`` under ``meta["data_folder"]``) the features are computed anew:
``adanpc_source_rows.npy`` holds their row numbers, found by comparing features.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

import tta
from tta import neighbours

ROWS = Path(__file__).with_name("adanpc_source_rows.npy")


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    return {
        "threshold": given["beta"],
        "neighbours": given["k"],
        "temperature": given["temperature"],
        "output": "scores",
    }


def install(adapter: tta.Adapter, meta: dict[str, Any], arrays: NpzFile) -> None:
    """The memory before the first batch: a random row, then the source features."""
    rows = torch.from_numpy(arrays["init/memory"]).double()
    folder = meta.get("data_folder", "")
    found = sorted(Path(folder).glob("cifar10/train-*.parquet"))
    if found:
        features = [adapter._tap(adapter.model, x)[0] for x in _images(found[0]).split(50)]
        features = torch.nn.functional.normalize(torch.cat(features), dim=1)
        if (features - rows[1:]).abs().max() > 1e-6:
            raise ValueError("the CIFAR-10 images are not those of the trace")
        rows = torch.cat([rows[:1], features])
    neighbours.set_source(adapter.memory, rows, torch.from_numpy(arrays["init/memory_label"]))
    adapter.source_fitted = True


def _images(file: Path) -> Tensor:
    from PIL import Image
    from pyarrow import parquet

    encoded = parquet.read_table(file, columns=["img"])["img"]
    pixels = [
        np.array(Image.open(io.BytesIO(encoded[int(row)]["bytes"].as_py())).convert("RGB"))
        for row in np.load(ROWS, allow_pickle=False)
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).double() / 255
