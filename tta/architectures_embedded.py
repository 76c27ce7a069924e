"""Builds the shipped architectures from timm's classes.

Four stages of one basic residual block each (He et al.: Deep Residual Learning for Image
Recognition, 2015, arXiv:1512.03385) behind a 3x3 stem of stride 2, small enough (446k parameters,
8 million multiply-adds an image) for a whole benchmark on a laptop.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from tta.embedded import EMBEDDED
from tta.errors import BackboneError

# 24 channels are the narrowest stage: 8 groups of 3 channels.
_GROUPS = 8


def build_embedded(name: str, num_classes: int | None = None) -> nn.Module:
    """Build a shipped architecture with random weights.

    Args:
        name: A name of ``tta.embedded.names()``.
        num_classes: Width of the classifier; ``None`` keeps the entry's.

    Returns:
        A timm ``ByobNet`` that maps normalised images ``(B, 3, H, W)`` to logits ``(B, K)``. The
        weights are drawn from torch's global generator, as everywhere in torch.

    Raises:
        BackboneError: If no shipped architecture has this name.
    """
    if name not in EMBEDDED:
        raise BackboneError(f"no embedded backbone {name!r}; there are {', '.join(EMBEDDED)}")
    from timm.layers import GroupNormAct
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    entry = EMBEDDED[name]
    classes = entry.num_classes if num_classes is None else num_classes
    norm: Any = "batchnorm"
    if entry.norm == "groupnorm":
        norm = functools.partial(GroupNormAct, num_groups=_GROUPS)
    blocks = tuple(
        # The stem has halved the image already: the first stage keeps its size.
        ByoBlockCfg(type="basic", d=1, c=width, s=1 if stage == 0 else 2, gs=0, br=1.0)
        for stage, width in enumerate(entry.widths)
    )
    config = ByoModelCfg(
        blocks=blocks,
        stem_type="3x3",
        stem_pool="",
        stem_chs=entry.widths[0],
        norm_layer=norm,
    )
    model: nn.Module = ByobNet(config, num_classes=classes, in_chans=3)
    # What timm's factory would have attached: its data helpers read the pre-processing from here.
    pretrained_cfg: dict[str, Any] = {
        "architecture": name,
        "num_classes": classes,
        "input_size": (3, *entry.input_size),
        "mean": entry.mean,
        "std": entry.std,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "first_conv": "stem.conv",
        "classifier": "head.fc",
    }
    vars(model).update(pretrained_cfg=pretrained_cfg, default_cfg=pretrained_cfg)
    return model
