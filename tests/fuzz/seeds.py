"""Writes the corpus: one small good file of every kind.

    python tests/fuzz/seeds.py

Files whose names have a ``~`` are findings that were fixed; they stay.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parent))

from targets import CORPUS

import benchmarks
from benchmarks.learning_runner import run as run_life
from benchmarks.learning_spec import resolve_learning as resolve_life

TEXTS = {
    "sweep.toml": 'methods = ["tent"]\nstreams = ["fashion-mnist-c"]\nseeds = [0, 1]\n'
    'num_examples = 20\n[common]\ncorruptions = ["fog"]\nbatch_size = 10\n[set]\ndeyo.lr = 1\n'
    "[grid]\nlr = [1e-3, 1e-4]\n[[overrides]]\nmatch = { seed = 1 }\nnum_examples = 10\n",
    "protocol.toml": 'name = "p"\nversion = 1\nstream = "fashion-mnist-c"\nsetting = "reset"\n'
    'corruptions = ["fog"]\nseverity = [5]\nbatch_size = 200\nshuffle = true\n',
    "tuned.toml": 'format = 1\nstream = "fashion-mnist-c"\nbackbone = "fashion-resnet"\n'
    'trials = 2\nseed = 0\nprotocol = "p-v1"\nstream_hash = "00"\n[tuning_stream]\n'
    'setting = "continual"\n[methods.tent]\ntrials = 2\nbest_trial = 1\nerror_pct = 20.5\n'
    "default_error_pct = 21\n[methods.tent.options]\nlr = 0.001\n",
    "run.txt": "method=tent\nstream=fashion-mnist-c\nsetting=continual\nset=lr=0.001\nseed=0,1\n"
    "severity=5,3\n",
    "run.txt~recurring": "setting=recurring\nsetting-set=visits=2\nsetting-set=base=practical\n",
    "run.txt~unitta": "method=rotta\nsetting=unitta\nset=nu=0.01\nopen-set=held-out:1,2\n",
    "run.txt~practical": "setting=practical\nsetting-set=gamma=0.1\nset=tent.lr=1\nseverity=1\n",
    "run.txt~ccc": "stream=fashion-mnist-ccc\nsource-set=level=hard\nset=optimizer=sgd\n",
    "list.txt": "real/zebra/real_1.jpg 3\nreal/ant/real_2.jpg 4\n",
    "labels.txt": "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n"
    "n01443537\nILSVRC2012_val_00000003.JPEG 1\n",
}


def put(target: str, name: str, data: bytes) -> None:
    """One file of the corpus."""
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    (CORPUS / target / name).write_bytes(data)


def saved(value: object, **how: object) -> bytes:
    """What torch writes."""
    file = io.BytesIO()
    torch.save(value, file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def picture(kind: str, side: int = 8) -> bytes:
    """An encoded image."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def arrays() -> None:
    """npy, idx, parquet, a CIFAR batch and images."""
    generator = np.random.default_rng(0)
    file = io.BytesIO()
    np.save(file, generator.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8))
    put("arrays", "fog.npy", file.getvalue())
    file = io.BytesIO()
    np.save(file, np.arange(10) % 3)
    put("arrays", "fog.npy~labels", file.getvalue())
    images = bytes((0, 0, 8, 3)) + struct.pack(">III", 2, 4, 4) + bytes(32)
    put("arrays", "images.idx", images)
    put("arrays", "images.idx~gz", gzip.compress(images, mtime=0))
    put("arrays", "labels.idx", bytes((0, 0, 8, 1)) + struct.pack(">I", 5) + bytes(5))
    cells = [{"bytes": picture("PNG"), "path": f"{n}.png"} for n in range(3)]
    for name, columns in {
        "set.parquet": {"img": cells, "label": [0, 1, 2]},
        "shard.parquet": {"image": cells, "label": [0, 1, 2]},
    }.items():
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file, row_group_size=2)
        put("arrays", name, file.getvalue())
    pixels = np.zeros((1, 3072), dtype=np.uint8)
    batch = {b"data": pixels, b"labels": [3], b"filenames": [b"a.png"]}
    put("arrays", "batch.pkl", pickle.dumps(batch, protocol=2))
    for kind in ("png", "jpeg", "webp"):
        put("arrays", f"image.{kind}", picture(kind, 16))


def archives() -> None:
    """Small archives of every kind."""
    content = {"Set/a.txt": b"one", "Set/b/c.bin": bytes(600), "Set/b/d.bin": b"x" * 40}
    for kind in ("", "gz", "bz2", "xz"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=f"w:{kind}", format=tarfile.PAX_FORMAT) as tar:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(data), {"comment": "é"}
                tar.addfile(info, io.BytesIO(data))
        put("archives", f"tar.{kind}".rstrip("."), file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in content.items():
            zipped.writestr(zipfile.ZipInfo(name), data)
    put("archives", "zip", file.getvalue())


def checkpoints() -> None:
    """Weights, a checkpoint of a run, a trace."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    state = dict(model.state_dict())
    put("checkpoints", "w.safetensors", save(state))
    put("checkpoints", "w.pth", saved({"state_dict": state}))
    put("checkpoints", "old.pth", saved(state, _use_new_zipfile_serialization=False))
    run = {"step": 3, "adapter": state, "correct": 1, "total": 2, "scores": {}, "reference": {}}
    put("checkpoints", "state.pt", saved({**run, "parts": ["steps-000000.parquet"]}))
    meta = {"method": "tent", "hyperparameters": {"optimiser": "adam", "lr": 0.001}, "stream": []}
    file = io.BytesIO()
    np.savez(file, **{"meta": json.dumps(meta), "f64/logits": np.zeros((2, 3))})
    put("checkpoints", "trace.npz", file.getvalue())


def results(folder: Path) -> None:
    """Files of a run and of a life."""
    small = {"num_examples": 20, "batch_size": 10, "corruptions": ("fog",)}
    benchmarks.run(benchmarks.resolve("source", "fashion-mnist-c", **small), folder / "a")
    (run,) = folder.glob("a/*/result.json")
    for name in ("result.json", "spec.json", "steps.parquet"):
        put("folder", name, (run.parent / name).read_bytes())
    put("folder", "results.sqlite", (folder / "a" / "results.sqlite").read_bytes())
    put("checkpoints", "part.parquet", (run.parent / "steps.parquet").read_bytes())
    life = resolve_life(
        "naive", "split-fashion-mnist", backbone="small-cnn", num_examples=20, num_tasks=2
    )
    run_life(life, folder / "b")
    (lived,) = folder.glob("b/*/result.json")
    for name in ("result.json", "spec.json"):
        put("folder", f"{name}~life", (lived.parent / name).read_bytes())
    put("folder", "evals.parquet", (lived.parent / "evals.parquet").read_bytes())


def main() -> None:
    """Write all of it, findings aside."""
    for name, text in TEXTS.items():
        put("text", name, text.encode())
    source = Path(benchmarks.__file__).parent / "experiments"
    shortest = min(source.glob("*.toml"), key=lambda path: path.stat().st_size)
    put("text", "experiment.toml", shortest.read_bytes())
    arrays()
    archives()
    checkpoints()
    folder = Path(tempfile.mkdtemp())
    os.environ["TTA_BENCH_CACHE"] = str(folder / "cache")
    results(folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
