"""The random augmentation of the teachers, and AugMix: values, ranges, draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageOps
from torch import Tensor

from tta import augment, augmix

SMALL = 1e-12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=dtype)


# A(.) -------------------------------------------------------------------------------------------


def by_torchvision(x: Tensor, drawn: augment.Draw, padding: str) -> Tensor:
    """The pipeline as the card words it: pad by half, move, blur, crop the middle, flip."""
    side = x.shape[-1]
    for kind, factor in drawn.colours:
        x = getattr(TF, f"adjust_{kind}")(x.clamp(1e-8, 1) if kind == "gamma" else x, factor)
    x = TF.pad(x, side // 2, padding_mode=padding)
    x = TF.affine(
        x,
        drawn.degrees,
        list(drawn.shift),
        drawn.scale,
        [0.0, 0.0],
        interpolation=TF.InterpolationMode.BILINEAR,
        fill=[0.0] * x.shape[1],
    )
    if drawn.sigma:
        x = TF.gaussian_blur(x, 5, [drawn.sigma])
    x = TF.center_crop(x, side)
    return (TF.hflip(x) if drawn.flip else x).clamp(0, 1)


@pytest.mark.parametrize("padding", ["edge", "reflect"])
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (33, 3), (64, 1)])
def test_equals_the_pipeline_of_torchvision(padding, side, channels):
    generator = seeded()
    for _ in range(8):
        x = images(2, channels, side, side)
        drawn = augment.draw(generator, side, side, blur=padding == "edge")
        away = (augment.apply(x, drawn, padding=padding) - by_torchvision(x, drawn, padding)).abs()
        # torchvision turns the hue in float32.
        assert away.max() < (5e-6 if channels == 3 else SMALL)


def test_without_hue_nothing_but_rounding_is_left():
    x = images(2, 3, 32, 32)
    drawn = augment.draw(seeded(3), 32, 32)
    colours = tuple((kind, factor) for kind, factor in drawn.colours if kind != "hue")
    drawn = augment.Draw(colours=colours, degrees=9.0, shift=(3, -2), scale=1.07, sigma=0.4)
    assert (augment.apply(x, drawn) - by_torchvision(x, drawn, "edge")).abs().max() < SMALL


def test_the_default_draw_is_the_identity():
    x = images(3, 3, 16, 16)
    assert torch.equal(augment.apply(x, augment.Draw()), x)
    neutral = (("hue", 0.0), ("gamma", 1.0), ("contrast", 1.0), ("saturation", 1.0))
    weak = augment.Draw(colours=neutral, degrees=1e-9, sigma=1e-3)
    assert (augment.apply(x, weak) - x).abs().max() < 1e-7  # gamma keeps off zero by 1e-8


def test_colours_by_hand():
    pixel = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64).view(1, 3, 1, 1)
    gray = 0.2989 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6

    def changed(kind: str, factor: float) -> list[float]:
        return augment.apply(pixel, augment.Draw(colours=((kind, factor),))).flatten().tolist()

    assert changed("brightness", 2.0) == pytest.approx([0.4, 0.8, 1.0], abs=SMALL)
    assert changed("saturation", 0.5) == pytest.approx(
        [(v + gray) / 2 for v in (0.2, 0.4, 0.6)], abs=SMALL
    )
    assert changed("contrast", 0.5) == changed("saturation", 0.5)  # one pixel is its own mean
    assert changed("gamma", 2.0) == pytest.approx([0.04, 0.16, 0.36], abs=SMALL)
    # The hue is 210 degrees; a third of a turn later 330: red at the top, then blue.
    assert changed("hue", 1 / 3) == pytest.approx([0.6, 0.2, 0.4], abs=SMALL)


def test_a_shift_repeats_the_edge_or_mirrors_it():
    row = torch.arange(8, dtype=torch.float64).div(8).expand(1, 1, 8, 8)
    moved = augment.Draw(shift=(2, 0))
    edge = augment.apply(row, moved, padding="edge")[0, 0, 0] * 8
    mirror = augment.apply(row, moved, padding="reflect")[0, 0, 0] * 8
    assert edge.tolist() == pytest.approx([0, 0, 0, 1, 2, 3, 4, 5], abs=SMALL)
    assert mirror.tolist() == pytest.approx([2, 1, 0, 1, 2, 3, 4, 5], abs=SMALL)
    flipped = augment.apply(row, augment.Draw(flip=True))[0, 0, 0] * 8
    assert flipped.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_range_dtype_and_shape(dtype):
    x = images(2, 3, 24, 40).mul(3).sub(1).to(dtype)
    for seed in range(4):
        out = augment.cotta(x, seeded(seed))
        assert out.shape == x.shape
        assert out.dtype == dtype
        assert out.min() >= 0
        assert out.max() <= 1


def test_the_generator_decides_all():
    x, before = images(2, 3, 32, 32), torch.get_rng_state()
    first, again = augment.cotta(x, seeded(5)), augment.cotta(x, seeded(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment.cotta(x, seeded(6)))
    assert torch.equal(before, torch.get_rng_state())
    x.requires_grad_(True)
    assert not augment.cotta(x, seeded(5)).requires_grad


def test_one_draw_a_batch():
    x = images(1, 3, 32, 32).expand(4, 3, 32, 32)
    same = augment.cotta(x, seeded(), noise=False)
    assert torch.equal(same, same[:1].expand_as(same))
    noise = augment.cotta(x, seeded()) - same
    assert not torch.equal(noise[0], noise[1])  # the noise alone is each image's own
    inside = (same > 0.05) & (same < 0.95)
    assert noise[inside].std().item() == pytest.approx(0.005, rel=0.03)


def test_draws_stay_in_their_ranges_and_flip_half_of_the_time():
    generator = seeded()
    draws = [augment.draw(generator, 32, 64) for _ in range(1000)]
    for kind, (low, high) in {
        "brightness": (0.6, 1.4),
        "contrast": (0.7, 1.3),
        "saturation": (0.5, 1.5),
        "hue": (-0.06, 0.06),
        "gamma": (0.7, 1.3),
    }.items():
        values = [dict(d.colours)[kind] for d in draws]
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(values) <= high
    assert len({tuple(kind for kind, _ in d.colours) for d in draws}) == 120  # every order
    assert {d.shift[0] for d in draws} == set(range(-8, 9))
    assert {d.shift[1] for d in draws} == set(range(-4, 5))
    assert max(abs(d.degrees) for d in draws) <= 15
    assert all(0.9 <= d.scale <= 1.1 and 0.001 <= d.sigma <= 0.5 for d in draws)
    # 3.5 deviations of a fair coin
    assert sum(d.flip for d in draws) == pytest.approx(500, abs=55)


# AugMix -----------------------------------------------------------------------------------------


def by_pillow(image: Image.Image, kind: str, level: float, sign: float) -> Image.Image:
    width, height = image.size
    if kind in ("autocontrast", "equalize"):
        return getattr(ImageOps, kind)(image)
    if kind == "posterize":
        return ImageOps.posterize(image, 4 - int(level * 4 / 10))
    if kind == "solarize":
        return ImageOps.solarize(image, 256 - int(level * 25.6))
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)}
    if kind == "rotate":
        return image.rotate(sign * int(3 * level), **how)
    data = {
        "shear-x": (1, sign * 0.03 * level, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, sign * 0.03 * level, 1, 0),
        "translate-x": (1, 0, sign * int(level * width / 30), 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, sign * int(level * height / 30)),
    }[kind]
    return image.transform(image.size, Image.Transform.AFFINE, data, **how)


@pytest.mark.parametrize("kind", augmix.OPERATIONS)
def test_operations_are_those_of_an_image_library(kind):
    x = (images(3, 3, 30, 60) * 180 + 30).round()
    number = torch.full((3,), augmix.OPERATIONS.index(kind))
    for level in (0.1, 0.4, 0.75, 0.99):
        levels, signs = torch.full((3,), level), torch.tensor([1.0, -1.0, 1.0])
        got = augmix.operate(x, number, levels, signs)
        for row in range(3):
            picture = Image.fromarray(x[row].permute(1, 2, 0).byte().numpy())
            wanted = by_pillow(picture, kind, level, signs[row].item())
            away = (
                got[row].permute(1, 2, 0).numpy() - np.array(wanted, dtype=np.float64)
            ).__abs__()
            # Whole parts of what is whole but for rounding may fall to either side.
            assert away.max() <= 1
            assert (away > 0).mean() < 0.03


def test_operations_leave_the_other_images_alone():
    x = (images(4, 3, 16, 16) * 255).round()
    kinds = torch.tensor([-1, augmix.OPERATIONS.index("solarize"), -1, -1])
    out = augmix.operate(x, kinds, torch.full((4,), 1.0), torch.ones(4))
    assert torch.equal(out[[0, 2, 3]], x[[0, 2, 3]])
    assert torch.equal(out[1], torch.where(x[1] < 231, x[1], 255 - x[1]))


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_views(crop, dtype):
    x = images(3, 24, 32, dtype=torch.float32).to(dtype)
    before = torch.get_rng_state()
    out = augmix.views(x, 7, seeded(), crop=crop)
    assert out.shape == (7, 3, 24, 32)
    assert out.dtype == dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert len({view.sum().item() for view in out}) == 7
    assert torch.equal(out, augmix.views(x, 7, seeded(), crop=crop))
    assert not torch.equal(out, augmix.views(x, 7, seeded(1), crop=crop))
    assert torch.equal(before, torch.get_rng_state())


def test_views_do_not_depend_on_how_many_are_made_together(monkeypatch):
    x = images(3, 16, 16)
    whole = augmix.views(x, 9, seeded(), crop="resized")
    monkeypatch.setattr(augmix, "_ELEMENTS", 2 * x.numel())
    assert torch.equal(whole, augmix.views(x, 9, seeded(), crop="resized"))


@pytest.mark.parametrize("crop", ["none", "resized"])
def test_a_gray_image_stays_as_it_is(crop):
    """Weights of the mixture add up to one, and what lies outside is filled with the same gray."""
    x = torch.full((3, 32, 32), 128 / 255, dtype=torch.float64)
    out = augmix.views(x, 40, seeded(), crop=crop)
    assert (out - 128 / 255).abs().max() < 1e-6  # the weights are drawn in float32


def test_padded_crops_are_windows_and_mirrors():
    x = images(1, 8, 8)
    padded = torch.nn.functional.pad((x * 255).round(), [2] * 4)
    windows = [
        part
        for top in range(5)
        for left in range(5)
        for window in [padded[:, top : top + 8, left : left + 8]]
        for part in (window, window.flip(-1))
    ]
    crops = augmix._padded_crops((x * 255).round(), 400, 2, seeded())
    hits = [sum(torch.equal(crop, window) for crop in crops) for window in windows]
    assert sum(hits) == 400
    assert min(hits) > 0  # all 25 places, both ways round
