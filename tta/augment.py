"""The random test-time augmentation of the mean-teacher methods: one draw a batch, on its device.

Wang, Fink, Van Gool, Dai: Continual test-time domain adaptation, 2022, arXiv:2203.13591.
The image is padded by half its side, moved, and cropped again, so the padding can be left to the
sampling: only the pixels that survive the crop are ever computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["edge", "reflect"]

_COLOURS = ("brightness", "contrast", "saturation", "hue", "gamma")
_RANGES = {
    "brightness": (0.6, 1.4),
    "contrast": (0.7, 1.3),
    "saturation": (0.5, 1.5),
    "hue": (-0.06, 0.06),
    "gamma": (0.7, 1.3),
}
_DEGREES = 15.0
_SHIFT = 1 / 16  # of the padded side, which is twice the image's
_SCALE = (0.9, 1.1)
_SIGMA = (0.001, 0.5)
_NOISE = 0.005
_GRAY = (0.2989, 0.587, 0.114)
_BLUR_RADIUS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What is done to every image of a batch; the defaults do nothing.

    Attributes:
        colours: Colour changes and their factors, in order.
        degrees: Rotation, counter-clockwise positive as torchvision counts it.
        shift: Pixels to the right and down.
        scale: Enlargement.
        sigma: Width of the 5 x 5 Gaussian blur in pixels; 0: none.
        flip: Mirror left and right.
    """

    colours: tuple[tuple[str, float], ...] = ()
    degrees: float = 0.0
    shift: tuple[int, int] = (0, 0)
    scale: float = 1.0
    sigma: float = 0.0
    flip: bool = False


def cotta(
    x: Tensor,
    generator: torch.Generator,
    *,
    padding: Padding = "edge",
    blur: bool = True,
    noise: bool = True,
) -> Tensor:
    """Augment a batch with one draw of colour, position, blur and flip for all of its images.

    Args:
        x: Images ``(B, C, H, W)``, floating; clipped to ``[0, 1]``. Hue and saturation change
            images of three channels alone.
        generator: A CPU generator; all draws come from it, so that the result does not depend on
            the device.
        padding: What lies beyond the border: ``"edge"`` (CoTTA, RoTTA, SANTA, RMT) or ``"reflect"``
            (ROID, CMF).
        blur: Blur, as CoTTA does; ROID and CMF do not.
        noise: Add Gaussian noise of deviation 0.005, as CoTTA does; ROID and CMF do not.

    Returns:
        ``(B, C, H, W)`` in ``[0, 1]``, of ``x``'s dtype and device, without a graph.
    """
    drawn = draw(generator, x.shape[-2], x.shape[-1], blur=blur)
    with torch.no_grad():
        out = apply(x, drawn, padding=padding)
        if noise:
            shift = torch.randn(x.shape, generator=generator).to(out)
            out = out.add_(shift, alpha=_NOISE).clamp_(0, 1)
    return out


def draw(generator: torch.Generator, height: int, width: int, *, blur: bool = True) -> Draw:
    """One draw for images of ``height`` x ``width`` pixels, in the order of the reference."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    order = torch.randperm(len(_COLOURS), generator=generator).tolist()
    colours = tuple((_COLOURS[i], uniform(*_RANGES[_COLOURS[i]])) for i in order)
    degrees = uniform(-_DEGREES, _DEGREES)
    limits = [_SHIFT * (side + 2 * (side // 2)) for side in (width, height)]
    right, down = (round(uniform(-limit, limit)) for limit in limits)
    scale = uniform(*_SCALE)
    sigma = uniform(*_SIGMA) if blur else 0.0
    return Draw(
        colours=colours,
        degrees=degrees,
        shift=(right, down),
        scale=scale,
        sigma=sigma,
        flip=uniform(0, 1) < 0.5,
    )


@torch.no_grad()
def apply(x: Tensor, drawn: Draw, *, padding: Padding = "edge") -> Tensor:
    """Do to a batch what ``drawn`` says.

    Args:
        x: Images ``(B, C, H, W)``, floating; clipped to ``[0, 1]``.
        drawn: Colours, position, blur and flip.
        padding: What lies beyond the border.

    Returns:
        ``(B, C, H, W)`` in ``[0, 1]``, a tensor of its own.
    """
    # Positions in half precision would be off by whole pixels.
    work = x.detach().to(torch.promote_types(x.dtype, torch.float32)).clamp(0, 1)
    for kind, factor in drawn.colours:
        work = _colour(work, kind, factor)
    margin = _BLUR_RADIUS if drawn.sigma > 0 else 0
    if margin or drawn.degrees or drawn.shift != (0, 0) or drawn.scale != 1:
        work = _move(work, drawn, margin, padding)
    if margin:
        work = _blur(work, drawn.sigma)
    if drawn.flip:
        work = work.flip(-1)
    return work.clamp(0, 1).to(x.dtype)


def _colour(x: Tensor, kind: str, factor: float) -> Tensor:
    if kind == "brightness":
        return (x * factor).clamp(0, 1)
    if kind == "gamma":
        return x.clamp(1e-8, 1).pow(factor)
    if kind == "contrast":
        mean = gray(x).mean(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(mean.expand_as(x), x, factor).clamp(0, 1)
    if x.shape[1] != 3:  # saturation and hue are those of a colour
        return x
    if kind == "saturation":
        return torch.lerp(gray(x).expand_as(x), x, factor).clamp(0, 1)
    return turn_hue(x, factor)


def gray(x: Tensor) -> Tensor:
    """Luma ``(B, 1, H, W)`` of RGB images; the mean where there are not three channels."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    red, green, blue = x.unbind(1)
    return (_GRAY[0] * red + _GRAY[1] * green + _GRAY[2] * blue).unsqueeze(1)


def turn_hue(x: Tensor, turns: float | Tensor) -> Tensor:
    """Turn the hue of RGB images at constant value and saturation (HSV).

    Args:
        x: ``(B, 3, H, W)`` in ``[0, 1]``.
        turns: Full turns, one number or anything that broadcasts with ``(B, H, W)``.
    """
    red, green, blue = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    sixth = torch.where(  # the hue in sixths of a turn
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    first = torch.arange(5, 0, -2, device=x.device, dtype=x.dtype).view(3, 1, 1)
    phase = (first + (sixth + 6 * turns).unsqueeze(1)).remainder(6)
    share = torch.minimum(phase, 4 - phase).clamp(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * share


def _move(x: Tensor, drawn: Draw, margin: int, padding: Padding) -> Tensor:
    """Rotate, scale and shift about the centre; ``margin`` more pixels on every side come back."""
    height, width = x.shape[-2:]
    columns = _offsets(width, margin, x) - drawn.shift[0]
    rows = (_offsets(height, margin, x) - drawn.shift[1]).unsqueeze(1)
    cos = math.cos(math.radians(drawn.degrees)) / drawn.scale
    sin = math.sin(math.radians(drawn.degrees)) / drawn.scale
    grid = torch.stack(
        (
            (cos * columns + sin * rows) * (2 / max(width - 1, 1)),
            (cos * rows - sin * columns) * (2 / max(height - 1, 1)),
        ),
        dim=-1,
    )
    mode = "border" if padding == "edge" else "reflection"
    # With align_corners the reflection is about pixel centres, as padding by reflection is.
    return F.grid_sample(
        x, grid.expand(len(x), -1, -1, -1), mode="bilinear", padding_mode=mode, align_corners=True
    )


def _offsets(side: int, margin: int, like: Tensor) -> Tensor:
    """Pixel centres of a side and its margins, seen from the middle of the image."""
    steps = torch.arange(-margin, side + margin, device=like.device, dtype=like.dtype)
    return steps - (side - 1) / 2


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur that uses up a margin of two pixels: ``(B, C, H + 4, W + 4)`` to ``H, W``."""
    steps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (steps / sigma) ** 2, dim=0)
    planes = x.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view(*x.shape[:2], *planes.shape[-2:])
