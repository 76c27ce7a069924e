"""Strong and weak random views of contrastive learning: every image of a batch gets its own draw.

Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of visual
representations, 2020, arXiv:2002.05709; in the form of MoCo v2, Chen, Fan, Girshick, He: Improved
baselines with momentum contrastive learning, 2020, arXiv:2003.04297.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta.augment import gray, turn_hue

_BRIGHTNESS = _CONTRAST = _SATURATION = 0.4
_HUE = 0.1
_SIGMA = (0.1, 2.0)
_BLUR_RADIUS = 6  # three deviations of the widest kernel


@torch.no_grad()
def weak(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image with probability 0.5.

    Args:
        x: Images ``(B, C, H, W)``, floating.
        generator: A CPU generator; all draws come from it.

    Returns:
        ``(B, C, H, W)``, a tensor of its own.
    """
    flip = _chance(x, generator, 0.5)
    return torch.where(flip, x.flip(-1), x)


@torch.no_grad()
def strong(x: Tensor, generator: torch.Generator) -> Tensor:
    """Jitter the colours (0.8), take them away (0.2), blur (0.5) and mirror (0.5) each image.

    The factors of the jitter are drawn for each image, their order for the batch.

    Args:
        x: Images ``(B, C, H, W)``, floating; clipped to ``[0, 1]``. Saturation, hue and the loss of
            colours change images of three channels alone.
        generator: A CPU generator; all draws come from it, so that the result does not depend on
            the device.

    Returns:
        ``(B, C, H, W)`` in ``[0, 1]``, of ``x``'s dtype and device.
    """
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32)).clamp(0, 1)
    jittered = _jitter(x, generator)
    x = torch.where(_chance(x, generator, 0.8), jittered, x)
    colourless = _chance(x, generator, 0.2)
    if x.shape[1] == 3:
        x = torch.where(colourless, gray(x).expand_as(x), x)
    sigma = _uniform(x, generator, *_SIGMA)
    rows = (torch.rand(len(x), generator=generator) < 0.5).nonzero()[:, 0].to(x.device)
    x = x.index_copy(0, rows, _blur(x[rows], sigma[rows, 0, 0, 0]))
    return weak(x, generator).clamp(0, 1).to(dtype)


def _uniform(x: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """A draw an image, ``(B, 1, 1, 1)``."""
    return torch.rand(len(x), 1, 1, 1, generator=generator).mul_(high - low).add_(low).to(x)


def _chance(x: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Whether something is done to each image: bool ``(B, 1, 1, 1)``."""
    return (torch.rand(len(x), 1, 1, 1, generator=generator) < probability).to(x.device)


def _jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    brightness = _uniform(x, generator, 1 - _BRIGHTNESS, 1 + _BRIGHTNESS)
    contrast = _uniform(x, generator, 1 - _CONTRAST, 1 + _CONTRAST)
    saturation = _uniform(x, generator, 1 - _SATURATION, 1 + _SATURATION)
    hue = _uniform(x, generator, -_HUE, _HUE)
    for kind in torch.randperm(4, generator=generator).tolist():
        if kind == 0:
            x = (x * brightness).clamp(0, 1)
        elif kind == 1:
            mean = gray(x).mean(dim=(1, 2, 3), keepdim=True)
            x = torch.lerp(mean, x, contrast).clamp(0, 1)
        elif x.shape[1] != 3:  # saturation and hue are those of a colour
            continue
        elif kind == 2:
            x = torch.lerp(gray(x), x, saturation).clamp(0, 1)
        else:
            x = turn_hue(x, hue[:, 0])
    return x


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of image ``i`` of ``(B, C, H, W)`` with deviation ``sigma[i]`` pixels."""
    if not len(x):
        return x
    batch, channels = x.shape[:2]
    steps = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-0.5 * (steps / sigma[:, None]) ** 2, dim=1)
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None]  # a group a plane
    planes = F.pad(x, [_BLUR_RADIUS] * 4, mode="replicate").flatten(0, 1)[None]
    for taps in (kernel[..., None], kernel[:, :, None]):
        planes = F.conv2d(planes, taps, groups=batch * channels)
    return planes.view_as(x)
