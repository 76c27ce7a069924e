"""Corruptions at other sizes: profiles, threads, JPEG, and the faster draws and arithmetic."""

from __future__ import annotations

import json
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import corruption_speed
from streams.corruptions import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    corrupt,
    digital,
    noise,
    recompress,
    registry,
    resample,
    rng,
    threads,
)
from streams.corruptions.parameters import PARAMETERS, PROFILES
from streams.corruptions.rng import Draws
from streams.errors import StreamError

ALL = CORRUPTIONS + EXTRA_CORRUPTIONS
DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)
every_corruption = pytest.mark.parametrize("name", ALL)


def make_images(count: int, height: int = 32, width: int = 32) -> Tensor:
    """Colourful images with smooth areas, edges, black and white."""
    generator = torch.Generator().manual_seed(count + height * 7 + width)
    coarse = torch.rand(count, 3, 5, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") * 300 - 20
    images[:, :, : height // 4, : width // 3] = (
        torch.rand(count, 3, 1, 1, generator=generator) * 255
    )
    return images.clamp(0, 255).to(torch.uint8)


LARGE = pytest.mark.parametrize(
    ("profile", "size"),
    [("imagenet", (224, 224)), ("imagenet", (97, 120)), ("tiny-imagenet", (64, 64))],
)


def test_every_profile_has_every_corruption() -> None:
    assert set(PROFILES) == set(PARAMETERS) == {"cifar", "imagenet", "tiny-imagenet"}
    for name, table in PARAMETERS.items():
        assert set(ALL) == set(table)
        assert PROFILES[name].name == name
        for rows in table.values():
            assert len(rows) == 5
            assert len({len(row) for row in rows}) == 1
    # Published seeds of the first profile were made with the first generation.
    assert {name: profile.generation for name, profile in PROFILES.items()} == {
        "cifar": 1,
        "imagenet": 2,
        "tiny-imagenet": 2,
    }


@every_corruption
@LARGE
def test_other_profiles_keep_the_promises(name: str, profile: str, size: tuple[int, int]) -> None:
    images = make_images(12, *size)
    ids = [5 * i + 2 for i in range(12)]
    whole = corrupt(images, name, 5, ids=ids, seed=4, profile=profile, threads=1)
    assert whole.shape == images.shape
    assert not torch.equal(whole, images)
    for count in (2, 5):
        again = corrupt(images, name, 5, ids=ids, seed=4, profile=profile, threads=count)
        assert torch.equal(again, whole)
    backwards = corrupt(images.flip(0), name, 5, ids=ids[::-1], seed=4, profile=profile)
    assert torch.equal(backwards.flip(0), whole)
    single = corrupt(images[7:8], name, 5, ids=ids[7:8], seed=4, profile=profile)
    assert torch.equal(single[0], whole[7])
    other = corrupt(images, name, 5, ids=ids, seed=5, profile=profile)
    assert torch.equal(other, whole) is (name in DETERMINISTIC)


@every_corruption
def test_flat_images_at_a_large_size(name: str) -> None:
    images = torch.zeros((3, 3, 224, 224), dtype=torch.uint8)
    images[1] = 255
    images[2] = 128
    with np.errstate(all="raise", under="ignore"):
        out = corrupt(images, name, 3, ids=range(3), profile="imagenet")
    if name.endswith("_blur") or name in ("pixelate", "elastic_transform"):
        # Zoom blur is dark where its zooms end; glass blur cuts twice.
        assert torch.equal(out[:, :, 8:-8, 8:-8], images[:, :, 8:-8, 8:-8])


@every_corruption
def test_both_generations_have_the_same_statistics(name: str) -> None:
    """The faster draws and arithmetic change single pixels, not what a corruption is."""
    images = make_images(60, 64, 64)
    old = images.numpy().astype(np.int16)
    facts, level = registry.find_level("tiny-imagenet", name, 4)
    changes = []
    for generation in (1, 2):
        draws = Draws(seed=3, ids=range(60), name=name, severity=4, generation=generation)
        job = registry.Job(
            images=images.numpy(),
            level=level,
            draws=draws,
            profile=replace(facts, generation=generation),
        )
        new = np.clip(registry.find(name)(job), 0, 255).astype(np.uint8)
        changes.append(new - old)
    first, second = changes
    wide = name in ("frost", "fog", "snow", "spatter", "elastic_transform", "motion_blur")
    tolerance = 0.12 if wide else 0.02
    assert np.abs(first).mean() == pytest.approx(np.abs(second).mean(), rel=tolerance)
    assert first.std() == pytest.approx(second.std(), rel=tolerance)
    if name in DETERMINISTIC:
        assert np.abs(first - second).max() <= 1


def test_threads_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(3, 224, 224)
    used = []
    pool = ThreadPoolExecutor

    def counted(count: int) -> ThreadPoolExecutor:
        used.append(count)
        return pool(count)

    monkeypatch.setattr(threads, "ThreadPoolExecutor", counted)
    monkeypatch.setenv(threads.VARIABLE, "2")
    corrupt(images, "contrast", 1, ids=range(3), profile="imagenet")
    corrupt(images, "contrast", 1, ids=range(3), profile="imagenet", threads=8)
    corrupt(images, "contrast", 1, ids=range(3), profile="imagenet", threads=1)
    assert used == [1, 2]  # beside the caller; no more threads than parts, none for one
    monkeypatch.setenv(threads.VARIABLE, "many")
    with pytest.raises(StreamError, match=r"TTA_CORRUPTION_THREADS must be a positive .*'many'"):
        corrupt(images, "contrast", 1, ids=range(3), profile="imagenet")


def pillow_round_trip(image: Tensor, **options: Any) -> Tensor:
    encoded = BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    picture.save(encoded, "JPEG", **options)
    return torch.from_numpy(np.array(Image.open(encoded))).permute(2, 0, 1)


class TestJpeg:
    @pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 224)])
    def test_the_pixels_are_those_of_pillow(self, size: tuple[int, int]) -> None:
        (image,) = make_images(1, *size)
        noisy = corrupt(image[None], "gaussian_noise", 5, ids=[0])[0]
        for quality in (1, 7, 10, 15, 18, 25, 40, 50, 58, 65, 80, 85, 95):
            for source in (image, noisy):
                expected = pillow_round_trip(source, quality=quality)
                through = digital.through_jpeg(source.numpy(), quality)
                assert np.array_equal(through, expected)

    def test_recompress_stores_as_the_original_does(self) -> None:
        images = make_images(4, 60, 71)
        out = recompress(images)
        assert out.dtype == torch.uint8
        assert not torch.equal(out, images)
        for one, source in zip(out, images, strict=True):
            # Optimised entropy tables shrink the file and keep the pixels.
            assert torch.equal(one, pillow_round_trip(source, quality=85, optimize=True))
        assert torch.equal(recompress(images, threads=3), out)
        assert not torch.equal(recompress(images, 40), out)
        assert recompress(images[:0]).shape == (0, 3, 60, 71)

    @pytest.mark.parametrize("quality", [0, 96, 8.5, "85"])
    def test_bad_quality(self, quality: Any) -> None:
        with pytest.raises(StreamError, match=r"quality must be an integer.*got "):
            recompress(make_images(1), quality)

    def test_bad_images(self) -> None:
        with pytest.raises(StreamError, match="must be uint8"):
            recompress(make_images(1).float())


class TestFastDraws:
    def test_normal(self) -> None:
        generator = np.random.Generator(np.random.SFC64(1))
        values = rng.normal(generator, (4, 500_000)).ravel().astype(np.float64)
        assert abs(values.mean()) < 0.003
        assert values.std() == pytest.approx(1, abs=0.002)
        assert (values**4).mean() == pytest.approx(3, abs=0.03)
        # The outermost cells of the table are drawn within.
        assert (np.abs(values) > 4.4).sum() == pytest.approx(21.7, abs=15)
        assert len(np.unique(values[np.abs(values) > 4.2])) > 30

    def test_uniform_and_integers(self) -> None:
        generator = np.random.Generator(np.random.SFC64(1))
        values = rng.uniform(generator, -1, 3, (200_001,))
        assert values.dtype == np.float32
        assert values.min() > -1
        assert values.max() < 3
        assert values.mean() == pytest.approx(1, abs=0.01)
        counts = np.bincount(rng.integers(generator, 6, (60_000,)))
        assert len(counts) == 6
        assert np.abs(counts - 10_000).max() < 500

    @pytest.mark.parametrize("photons", [3.0, 15.0, 60.0, 250.0])
    def test_photon_table_is_poisson(self, photons: float) -> None:
        from scipy.stats import poisson

        share, pair = noise.photon_table(photons)
        columns = share.shape[1]
        own = share / (1 << 16)
        for pixel in (0, 1, 100, 255):
            mass = np.zeros(256)
            np.add.at(mass, pair[pixel, :, 1], own[pixel] / columns)
            np.add.at(mass, pair[pixel, :, 0], (1 - own[pixel]) / columns)
            counts = np.arange(2000)
            levels = np.clip(counts / photons * 255, 0, 255).astype(int)
            exact = np.bincount(levels, poisson.pmf(counts, pixel / 255 * photons), 256)
            assert np.abs(mass - exact).max() < 2e-5


class TestFastGeometry:
    def test_warp_agrees_with_sample(self) -> None:
        images = make_images(1, 70, 90).numpy()[0].astype(np.float32)
        generator = np.random.default_rng(0)
        y = generator.uniform(-30, 100, (70, 90)).astype(np.float32)
        x = generator.uniform(-30, 120, (70, 90)).astype(np.float32)
        for repeat_edge in (False, True):
            fast = resample.warp(images, y, x, repeat_edge=repeat_edge)
            plain = resample.sample(
                images.transpose(1, 2, 0)[None], y[None], x[None], repeat_edge=repeat_edge
            )[0].transpose(2, 0, 1)
            assert np.abs(fast - plain).max() < 0.02

    @pytest.mark.parametrize("deviation", [0.6, 5.0, 60.0])
    def test_smoothing_by_cosines_agrees_with_the_filter(self, deviation: float) -> None:
        planes = np.random.default_rng(0).uniform(-1, 1, (2, 40, 55)).astype(np.float32)
        fast = resample.smooth_cosine(planes, deviation, 3)
        plain = resample.smooth(planes, deviation, mode="reflect", truncate=3)
        assert np.abs(fast - plain).max() < 1e-5

    def test_affine_maps_agree(self) -> None:
        corners = np.random.default_rng(0).uniform(-9, 9, (1, 3, 2))
        y, x = digital._affine(corners, 50, 60)
        ends = digital._affine_map(corners, 50, 60, np.array([[0, 1, 0]]), np.array([[0, 0, 1]]))
        for whole, at in ((y[0], ends[0][0, 0]), (x[0], ends[1][0, 0])):
            rows, columns = np.arange(50)[:, None], np.arange(60)
            assert (
                np.abs(at[0] + (at[1] - at[0]) * rows + (at[2] - at[0]) * columns - whole).max()
                < 0.02
            )


def test_the_speed_benchmark_needs_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corruption_speed, "_PEERS", (("no-such-distribution", "no_such_module"),))
    file = tmp_path / "speed.json"
    options = ["--corruptions", "contrast", "--severities", "1", "--repeats", "1", "--batch", "2"]
    assert corruption_speed.main([*options, "--json", str(file)]) == 0
    assert "packages: none installed" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert figures["geometric_mean_to_fastest"] is None
    assert figures["geometric_mean_to_original"] > 0
    assert [row["corruption"] for row in figures["rows"]] == ["contrast"]
    with pytest.raises(SystemExit):
        corruption_speed.main(["--json", str(tmp_path / "missing" / "speed.json")])


def test_the_speed_benchmark_takes_the_fastest_package_that_works() -> None:
    def failing(image: Any, severity: int, corruption_name: str) -> None:
        raise TypeError("broken by a newer numpy")

    def instant(image: Any, severity: int, corruption_name: str) -> None:
        assert image.shape == (224, 224, 3)

    peers = {"a": corruption_speed._peer(failing), "b": corruption_speed._peer(instant)}
    options = Namespace(batch=2, threads=1, repeats=1, peer_images=1)
    row = corruption_speed.measure("contrast", [1, 2], peers, options)
    assert row["packages_ms"]["a"] is None
    assert row["packages_ms"]["b"] > 0
    assert 0 < row["ratio_to_fastest"] < 1
