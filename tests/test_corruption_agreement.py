"""The corruptions agree with the reference sets, see tests/parity/corruption_agreement.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from streams.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from streams.corruptions.textures import clear_textures

pytestmark = pytest.mark.shared

# What tests/parity/corruption_agreement.py prints for the reference arrays: the error of
# ResNet-32 in percent of 2,000 images. The arrays never change, so a test need not run it twice.
# Corruptions without a random draw are missing: their pixels are compared instead.
REFERENCE_ERROR_PCT = {
    "gaussian_noise": 81.30,
    "shot_noise": 78.55,
    "impulse_noise": 80.45,
    "glass_blur": 69.25,
    "motion_blur": 54.30,
    "snow": 43.15,
    "frost": 57.40,
    "fog": 53.65,
    "elastic_transform": 38.45,
}


def _load_parity() -> ModuleType:
    path = Path(__file__).parent / "parity" / "corruption_agreement.py"
    spec = importlib.util.spec_from_file_location("corruption_agreement", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


parity = _load_parity()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Convolutions over batches of 50 are large enough to gain from a second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(shared: Path) -> Path:
    return shared / "data" / "cifar10c"


@pytest.mark.parametrize("name", CORRUPTIONS + EXTRA_CORRUPTIONS)
def test_change_has_the_reference_statistics(data: Path, name: str) -> None:
    rows = list(parity.statistics(data, [name]))
    assert len(rows) == 5
    for row in rows:
        assert abs(row.deviation_pct) <= row.band_pct, row
        assert row.std[0] == pytest.approx(row.std[1], rel=row.band_pct / 100), row
        assert row.mean[0] == pytest.approx(row.mean[1], rel=row.band_pct / 100, abs=0.5), row


def test_deterministic_corruptions_have_the_reference_pixels(data: Path) -> None:
    rows = list(parity.pixels(data))
    assert len(rows) == len(parity.DETERMINISTIC)
    for row in rows:
        assert row.within_two_pct >= 99, row
        # The claim of the documentation, stricter than the band.
        assert row.equal_pct >= 99.5, row


@pytest.mark.usefixtures("two_threads")
def test_a_network_errs_as_on_the_reference(shared: Path, data: Path) -> None:
    assert set(REFERENCE_ERROR_PCT) | set(parity.DETERMINISTIC) == set(CORRUPTIONS)
    weights = shared / "data" / "weights" / "resnet32-d509ac18.th"
    judge = parity.Judge(weights, data / "labels.npy")
    clean = parity.load_images(data / "clean.npy")
    for name, reference in REFERENCE_ERROR_PCT.items():
        ours = judge.error_pct(corrupt(clean, name, 5, ids=range(len(clean))))
        assert abs(ours - reference) <= parity.ERROR_BAND, (name, ours, reference)


def test_procedural_frost_has_the_reference_statistics(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.corruptions.textures._DISTRIBUTIONS", ())
    clear_textures()
    try:
        for row in parity.statistics(data, ["frost"]):
            assert row.holds, row
    finally:
        clear_textures()
