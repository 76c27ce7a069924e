"""Corruptions: contract of the entry point, determinism, geometry, frost textures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streams.corruptions import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    GENERATOR_VERSION,
    blur,
    corrupt,
    frost_digest,
    frost_source,
    registry,
    resample,
    spatter,
    textures,
    weather,
)
from streams.corruptions.names import CORRUPTIONS as NAMES
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


@pytest.fixture
def no_photographs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(textures, "_DISTRIBUTIONS", ())
    textures.clear_textures()
    yield None
    textures.clear_textures()


def test_names() -> None:
    assert len(CORRUPTIONS) == 15
    assert CORRUPTIONS is NAMES
    assert CORRUPTIONS[0] == "gaussian_noise"
    assert CORRUPTIONS[-1] == "jpeg_compression"
    assert set(ALL) == set(PARAMETERS["cifar"])
    assert GENERATOR_VERSION


@every_corruption
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (64, 64), (33, 47)])
def test_shape_and_dtype_for_any_size(name: str, size: tuple[int, int]) -> None:
    images = make_images(3, *size)
    before = images.clone()
    for severity in (1, 5):
        out = corrupt(images, name, severity, ids=[5, 6, 7])
        assert out.shape == images.shape
        assert out.dtype == torch.uint8
        assert out.device == images.device
        assert not torch.equal(out, images)
    assert torch.equal(images, before)


@every_corruption
@pytest.mark.parametrize("size", [(32, 32), (19, 23)])
def test_pixels_do_not_depend_on_the_batch(name: str, size: tuple[int, int]) -> None:
    images = make_images(64, *size)
    ids = [3 * i + 1 for i in range(64)]
    for severity in (2, 5):
        whole = corrupt(images, name, severity, ids=ids, seed=9)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
        shuffled = corrupt(images[order], name, severity, ids=[ids[i] for i in order], seed=9)
        assert torch.equal(shuffled, whole[order])
        for i in (0, 17, 63):
            single = corrupt(images[i : i + 1], name, severity, ids=[ids[i]], seed=9)
            assert torch.equal(single[0], whole[i])
        part = corrupt(images[10:47], name, severity, ids=ids[10:47], seed=9)
        assert torch.equal(part, whole[10:47])


@every_corruption
def test_pixels_do_not_depend_on_threads_layout_or_calls(name: str) -> None:
    images = make_images(50)
    tensor_ids: Any = torch.arange(50)
    array_ids: Any = np.arange(50)
    first = corrupt(images, name, 4, ids=range(50))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        second = corrupt(images, name, 4, ids=tensor_ids)
    finally:
        torch.set_num_threads(threads)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    third = corrupt(channels_last, name, 4, ids=array_ids)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pixels_do_not_depend_on_the_device() -> None:
    images = make_images(4)
    for name in ALL:
        out = corrupt(images.cuda(), name, 3, ids=range(4))
        assert out.is_cuda
        assert torch.equal(out.cpu(), corrupt(images, name, 3, ids=range(4)))


@every_corruption
def test_seed_id_and_severity_select_the_draws(name: str) -> None:
    images = make_images(1)
    first = corrupt(images, name, 3, ids=[0])
    other_seed = corrupt(images, name, 3, ids=[0], seed=1)
    other_id = corrupt(images, name, 3, ids=[1])
    random = name not in DETERMINISTIC
    assert torch.equal(first, other_seed) is not random
    assert torch.equal(first, other_id) is not random
    pair = corrupt(images.expand(2, -1, -1, -1), name, 3, ids=[0, 1])
    assert torch.equal(pair[0], pair[1]) is not random


def test_any_integer_is_an_id_and_a_batch_may_be_empty() -> None:
    images = make_images(2)
    out = corrupt(images, "gaussian_noise", 1, ids=[2**70, -1], seed=-(2**80))
    assert out.shape == images.shape
    assert corrupt(images[:0], "fog", 1, ids=[]).shape == (0, 3, 32, 32)


@every_corruption
def test_severity_increases_the_change(name: str) -> None:
    images = make_images(40)
    change = [
        (corrupt(images, name, severity, ids=range(40)).float() - images.float()).abs().mean()
        for severity in range(1, 6)
    ]
    # In the original, frost, elastic, glass and spatter have steps that go down, and the first two
    # severities of saturate desaturate while the others saturate.
    if name not in ("frost", "elastic_transform", "glass_blur", "spatter", "saturate"):
        assert all(a <= b * 1.03 for a, b in pairwise(change)), change
        assert change[0] < change[-1]


@every_corruption
def test_black_white_and_flat_images(name: str) -> None:
    images = torch.zeros((3, 3, 32, 32), dtype=torch.uint8)
    images[1] = 255
    images[2] = 128
    with np.errstate(all="raise", under="ignore"):
        out = corrupt(images, name, 5, ids=range(3))
    if name in ("defocus_blur", "gaussian_blur", "motion_blur", "pixelate"):
        assert torch.equal(out, images)


def test_global_random_state_is_untouched() -> None:
    images = make_images(2)
    numpy_before = np.random.get_state(legacy=False)
    torch_before = torch.get_rng_state()
    for name in ALL:
        corrupt(images, name, 5, ids=[0, 1])
    numpy_after = np.random.get_state(legacy=False)
    assert str(numpy_after) == str(numpy_before)
    assert np.array_equal(numpy_after["state"]["key"], numpy_before["state"]["key"])
    assert torch.equal(torch.get_rng_state(), torch_before)


GOOD = make_images(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "gausian_noise"},
            r"unknown corruption 'gausian_noise'; did you mean 'gaussian_n",
        ),
        ({"name": "zzz"}, "choose one of brightness"),
        ({"name": 3}, "unknown corruption 3"),
        ({"severity": 0}, "severity must be an integer from 1 to 5, got 0"),
        ({"severity": 6}, "got 6"),
        ({"severity": 2.0}, "got 2.0"),
        ({"severity": True}, "got True"),
        ({"profile": "cifra"}, "unknown profile 'cifra'; did you mean 'cifar'"),
        ({"images": GOOD.float() / 255}, "must be uint8"),
        ({"images": GOOD[0]}, r"shape \(B, 3, H, W\), got \(3, 32, 32\)"),
        ({"images": GOOD.permute(0, 2, 3, 1)}, r"shape \(B, 3, H, W\)"),
        ({"images": GOOD[:, :, :4]}, "at least 8x8"),
        ({"images": GOOD.numpy()}, "must be a torch tensor, got ndarray"),
        ({"threads": 0}, "threads must be a positive integer or None, got 0"),
        ({"ids": [1]}, "2 images, 1 ids"),
        ({"ids": [0, 0.5]}, "an id must be an integer, got 0.5"),
        ({"seed": "x"}, "seed must be an integer, got 'x'"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    good = {"images": GOOD, "name": "fog", "severity": 1, "ids": [0, 1]}
    with pytest.raises(StreamError, match=message) as caught:
        corrupt(**{**good, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_import_takes_neither_scipy_nor_pillow() -> None:
    code = (
        "import sys; from streams.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS; "
        "assert len(CORRUPTIONS) == 15; "
        "print([m for m in ('scipy', 'PIL', 'torchvision') if m in sys.modules]); "
        "import streams.corruptions as c; assert 'corrupt' in dir(c) and not hasattr(c, 'x'); "
        "from streams.corruptions import corrupt; "
        "print([m for m in ('scipy', 'PIL', 'torchvision') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "[]"]


class TestRegistry:
    def test_new_corruption_with_its_own_levels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        registry.find("fog")
        monkeypatch.setattr(registry, "_CORRUPTIONS", dict(registry._CORRUPTIONS))
        monkeypatch.setattr(registry, "_OWN_LEVELS", {})

        @registry.corruption("darkness", cifar=[(0.9,), (0.7,), (0.5,), (0.3,), (0.1,)])
        def darkness(job: registry.Job) -> registry.Array:
            (factor,) = job.level
            return job.images * factor

        images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
        assert set(corrupt(images, "darkness", 3, ids=[0]).flatten().tolist()) == {50}

        @registry.corruption("nowhere")
        def nowhere(job: registry.Job) -> registry.Array:
            return job.images

        with pytest.raises(StreamError, match="no parameters for profile 'cifar'"):
            corrupt(images, "nowhere", 3, ids=[0])

    def test_duplicates_and_short_tables_are_refused(self) -> None:
        registry.find("fog")
        with pytest.raises(StreamError, match=r"'fog' is already defined in .*weather"):
            registry.corruption("fog")(weather.fog)
        with pytest.raises(StreamError, match="2 rows for 'cifar'"):
            registry.corruption("short", cifar=[(1,), (2,)])(weather.fog)


class TestGeometry:
    def test_glass_follows_the_walk_of_the_original(self) -> None:
        """A plain loop in the original's order, with an assignment that overwrites."""
        reach, passes, side = 2, 3, 17
        images = torch.arange(side * side).remainder(251).to(torch.uint8).view(1, 1, side, side)
        draws = Draws(seed=0, ids=[4], name="glass_blur", severity=1)
        job = registry.Job(
            images=images.expand(-1, 3, -1, -1).numpy(),
            level=(0, reach, passes),
            draws=draws,
            profile=PROFILES["cifar"],
        )
        out = blur.glass_blur(job)[0, 0]
        inner = side - 2 * reach
        shape = (passes, 2, inner, inner)
        offsets = next(iter(draws)).integers(-reach, reach, size=shape, dtype=np.int16)
        pixels = (images[0, 0].numpy() / 255.0 * 255).astype(np.uint8)
        for turn in range(passes):
            for h in range(side - reach, reach, -1):
                for w in range(side - reach, reach, -1):
                    dy, dx = offsets[turn, :, h - reach - 1, w - reach - 1]
                    pixels[h, w] = pixels[h + dy, w + dx]
        assert np.array_equal(np.rint(out).astype(np.uint8), pixels)

    def test_wide_kernels_agree_with_the_plain_sum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        planes = make_images(2, 40, 31).numpy() / 255.0
        kernel = blur.disc(6.0, 0.5)
        wide = blur.correlate(planes, kernel)
        monkeypatch.setattr(blur, "_MOST_TAPS", 10_000)
        assert np.abs(wide - blur.correlate(planes, kernel)).max() < 1e-10

    def test_disc_sums_to_one(self) -> None:
        for radius, deviation in ((0.3, 0.4), (3.0, 0.1), (6.0, 0.5)):
            kernel = blur.disc(radius, deviation)
            assert kernel.sum() == pytest.approx(1, abs=1e-5)
            assert np.array_equal(kernel, kernel[::-1, ::-1])

    def test_motion_moves_along_its_direction(self) -> None:
        planes = np.zeros((2, 1, 21, 21), np.uint8)
        planes[:, :, 10, 10] = 255
        out = resample.motion(planes, 6, 2, np.array([0.0, 90.0]))[:, 0]
        assert np.flatnonzero(out[0].sum(axis=1)).tolist() == [10]
        assert np.flatnonzero(out[1].sum(axis=0)).tolist() == [10]
        assert out[0, 10, 10] > out[0, 10, 9] > out[0, 10, 8] > 0
        assert out[0, 10, 11:].sum() == 0

    def test_mirror(self) -> None:
        index = np.arange(-3, 6)
        assert resample.mirror(index, 3, repeat_edge=True).tolist() == [2, 1, 0, 0, 1, 2, 2, 1, 0]
        assert resample.mirror(index, 3, repeat_edge=False).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]

    def test_zoom_keeps_the_size_and_a_flat_image(self) -> None:
        for size in (8, 31, 32, 64):
            for factor in (1.0, 1.03, 1.25, 2.25):
                stack = np.full((size, size + 3, 2), 0.5, np.float32)
                out = resample.clipped_zoom(stack, factor)
                assert out.shape == stack.shape
                assert np.allclose(out[1:-1, 1:-1], 0.5)

    def test_plasma_fills_the_unit_interval(self) -> None:
        draws = np.random.default_rng(0).random((3, 64 * 64 - 1))
        cloud = weather.plasma(draws, 64, 2.0)
        assert cloud.min(axis=(1, 2)).tolist() == [0] * 3
        assert cloud.max(axis=(1, 2)).tolist() == [1] * 3

    def test_edges_of_a_square(self) -> None:
        grey = np.zeros((1, 20, 20), np.int64)
        grey[:, 6:14, 6:14] = 200
        found = spatter.edges(grey, 50, 150)[0]
        assert found.any()
        assert not found[9:11, 9:11].any()
        assert not found[:4].any()
        assert not spatter.edges(np.full((1, 20, 20), 9, np.int64), 50, 150).any()


class TestFrost:
    def test_source_and_digest(self) -> None:
        source = frost_source()
        assert source == "procedural" or source.startswith("photographs from ")
        assert len(frost_digest()) == 64

    @pytest.mark.usefixtures("no_photographs")
    def test_procedural(self) -> None:
        assert frost_source() == "procedural"
        digest = frost_digest()
        images = make_images(8)
        first = corrupt(images, "frost", 3, ids=range(8))
        textures.clear_textures()
        assert frost_digest() == digest
        assert torch.equal(corrupt(images, "frost", 3, ids=range(8)), first)
        big = make_images(2, 224, 160)
        assert corrupt(big, "frost", 5, ids=[0, 1]).shape == big.shape

    def test_photographs_of_a_distribution(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from PIL import Image

        info = tmp_path / "imgcorr-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: imgcorr\nVersion: 9\n")
        folder = tmp_path / "imagecorruptions" / "frost"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
        record = ["imagecorruptions/__init__.py,,", "imgcorr-9.dist-info/METADATA,,"]
        for i in range(1, 7):
            name = f"frost{i}.{'png' if i < 4 else 'jpg'}"
            Image.new("RGB", (300, 250), (40 * i, 10, 200)).save(folder / name)
            record.append(f"imagecorruptions/frost/{name},,")
        (info / "RECORD").write_text("\n".join(record) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(textures, "_DISTRIBUTIONS", ("no-such-distribution", "imgcorr"))
        textures.clear_textures()
        try:
            assert frost_source() == "photographs from imgcorr"
            found = textures.frost_textures(0.2, 32, 32)
            assert [texture.shape for texture in found] == [(3, 50, 60)] * 5
            assert [int(texture[0, 0, 0]) for texture in found[:3]] == [40, 80, 120]
            images = torch.zeros((4, 3, 32, 32), dtype=torch.uint8)
            out = corrupt(images, "frost", 1, ids=range(4))
            assert int(out[:, 2].max()) in range(38, 42)
            (folder / "frost2.png").unlink()
            textures.clear_textures()
            assert frost_source() == "procedural"
        finally:
            monkeypatch.undo()
            textures.clear_textures()
