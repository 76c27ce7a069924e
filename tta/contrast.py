"""Contrastive learning against source prototypes: views of one image attract, all others repel.

Shared by the methods that pull a test feature towards its nearest source class mean. The loss is
that of Khosla et al., Supervised contrastive learning, 2020, arXiv:2004.11362, with the index of
the image in the place of the label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projector(dim: int, out: int | None, generator: torch.Generator, like: Tensor) -> nn.Sequential:
    """``Linear - ReLU - Linear`` with torch's default initialisation, gradients on.

    Args:
        dim: Length of the features.
        out: Length of the projections, and of the hidden layer; no layer at all if ``None``.
        generator: CPU generator of the initial weights.
        like: A tensor of the device and dtype that the layers get.
    """
    if out is None:
        return nn.Sequential()
    layers = nn.Sequential(_linear(dim, out, generator), nn.ReLU(), _linear(out, out, generator))
    return layers.to(like)


def _linear(dim: int, out: int, generator: torch.Generator) -> nn.Linear:
    # Not constructed on the CPU: that would draw from torch's global generator.
    layer = nn.Linear(dim, out, device="meta").to_empty(device="cpu")
    bound = dim**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def nearest(features: Tensor, prototypes: Tensor) -> Tensor:
    """Class of the nearest prototype by cosine similarity.

    Args:
        features: ``(B, D)``.
        prototypes: ``(K, D)``; a row of zeros or of NaN is a class without source images.

    Returns:
        ``(B,)`` int64, without a gradient.
    """
    with torch.no_grad():
        known = prototypes.abs().sum(dim=1) > 0
        similarity = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T
        return similarity.masked_fill(~known, -torch.inf).argmax(dim=1)


def prototype_loss(
    layers: nn.Module,
    prototypes: Tensor,
    features: Tensor,
    augmented: Tensor,
    temperature: float,
) -> Tensor:
    """Contrastive loss of three views: nearest prototype, image, augmented image.

    Args:
        layers: Projects features ``(3, B, D)`` along their last dimension.
        prototypes: ``(K, D)``, no gradient wanted.
        features: ``(B, D)`` of the images, with a graph; they choose the prototypes.
        augmented: ``(B, D)`` of the augmented images, with a graph.
        temperature: Divides the cosine similarities.

    Returns:
        A scalar; 0 or more.
    """
    chosen = prototypes[nearest(features, prototypes)]
    return loss(layers(torch.stack((chosen, features, augmented))), temperature)


def loss(views: Tensor, temperature: float) -> Tensor:
    """Mean contrastive loss over all views of all images, each view an anchor.

    For an anchor, the other views of the same image are the positives and everything else of the
    batch is in the denominator, images of the same class too.

    Args:
        views: ``(V, B, D)`` with two or more views: ``[:, i]`` are those of image ``i``.
        temperature: Divides the cosine similarities.

    Returns:
        A scalar; 0 or more.
    """
    u = F.normalize(views, dim=2)
    flat = u.flatten(0, 1)
    similarity = flat @ flat.T / temperature
    itself = torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    log_all = similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1)
    # Sum over the positives of an anchor: its product with all views of the image but itself.
    positives = (u * (u.sum(dim=0) - u)).sum(dim=2).flatten() / temperature
    return (log_all - positives / (len(views) - 1)).mean()
