"""Golden traces of the original implementations, in float64 at 1e-8."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent
SCRIPT = ROOT / "parity" / "run_trace.py"
TRACES = sorted(Path(os.environ.get("TTA_SHARED", "."), "traces").glob("*.npz"))
# The longest, and repetitions of what another trace of the method shows; `make slow` replays them.
SLOW = {
    *("cotta_hflip", "cotta_official", "petal_fim_hflip", "petal_official", "rmt", "santa"),
    *("sar_reset", "sar_official", "sar_official_reset", "sar_official_reset_resume"),
    *("roid_noprior", "come_eata_k10", "come_tent_k10", "eata_official", "eata_official_a2000"),
    *("deyo_official_occ", "deyo_official_patch", "eta_official", "note_iabn_batch", "t3a_K5"),
}


@pytest.fixture(scope="module")
def run_trace():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import run_trace
    finally:
        sys.path.pop(0)
    return run_trace


@pytest.mark.shared
@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(t, marks=[pytest.mark.slow] if t.stem in SLOW else [], id=t.stem)
        for t in TRACES
    ],
)
def test_trace(trace: Path, shared: Path, run_trace) -> None:
    weights = shared / "data" / "weights" / "resnet20-12fca82f.th"
    floor = run_trace.noise_floor(trace)
    limit = 1e-8 if floor is None else floor
    assert run_trace.replay(trace, shared / "data", weights) <= limit


@pytest.mark.shared
@pytest.mark.slow
def test_command_line(shared: Path, tmp_path: Path) -> None:
    """The script prints the figure; a wrong trace fails, one of another network runs."""
    trace = shared / "traces" / "source.npz"
    arrays = dict(np.load(trace))
    meta = json.loads(str(arrays["meta"]))

    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, **{**arrays, "f64/logits": arrays["f64/logits"] + 1e-6})
    unknown = tmp_path / "unknown.npz"
    np.savez(unknown, **{**arrays, "meta": json.dumps({**meta, "method": "nobody"})})
    data = shared / "data"
    weights = data / "weights" / "resnet20-12fca82f.th"
    expected = {trace: 0, wrong: 1, unknown: 2}
    for file, status in expected.items():
        done = subprocess.run(
            [sys.executable, SCRIPT, file, "--data", data, "--weights", weights],
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stdout + done.stderr
        if status < 2:
            assert re.search(r"^max_abs_diff_float64=\d\.\d+e[-+]\d+$", done.stdout, re.M)


@pytest.mark.shared
def test_a_trace_with_resets_and_another_depth(shared: Path, tmp_path: Path, run_trace) -> None:
    """Architecture, batches and resets come from the meta: a trace made here replays to zero."""
    import mapping

    import tta

    data = shared / "data"
    weights = data / "weights" / "resnet32-d509ac18.th"
    meta = {
        "method": "tent_official",
        "hyperparameters": {"optimiser": "Adam", "lr": 0.01, "reset_after_steps": [2]},
        "model": "resnet32",
        "weights": weights.name,
        "normalisation": "ImageNet mean/std inside the model",
        "stream": [{"key": "fog_5", "first": 0, "stop": 25}],
        "batch_size": 8,
    }
    adapter = tta.wrap(run_trace.build_model(meta, weights), "tent", lr=0.01)
    logits = np.full((4, 8, 10), np.nan)
    for step, x in enumerate(run_trace.batches(meta, data)):
        logits[step, : len(x)] = adapter(x).numpy()
        if step == 1:
            adapter.reset()
    trace = tmp_path / "made.npz"
    np.savez(trace, **{"meta": json.dumps(meta), "f64/logits": logits})
    assert mapping.external_resets(meta) == {2}
    assert run_trace.replay(trace, data, weights) == 0.0
    # Without the reset the last batches differ: the comparison can fail.
    meta["hyperparameters"]["reset_after_steps"] = []
    np.savez(trace, **{"meta": json.dumps(meta), "f64/logits": logits})
    assert run_trace.replay(trace, data, weights) > 1e-3
