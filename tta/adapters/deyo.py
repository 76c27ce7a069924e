"""DeYO: minimise entropy on samples whose pseudo-label falls when the object's shape is destroyed.

Lee, Jung, Lee, Park, Shin, Hwang, Yoon: Entropy is not enough for test-time adaptation: from the
perspective of disentangled factors, 2024, arXiv:2403.07366. Reference code: Jhyun17/DeYO @ 3d7d289.

Deviations:
- Thresholds are factors of ``ln K`` for the model's own number of classes ``K``.
- With ``filter_entropy`` off every sample passes; the reference keeps a limit of ``ln 1000``.
- Patch permutations are drawn for the whole batch, a row an image, from a generator keyed by (seed,
  step); the reference draws from torch's global generator for the selected rows.
- Only normalisation layers leave eval mode. InstanceNorm and RMSNorm are adapted too.
- Deep layers are left out by depth (``skip_top="depth"``); ``"names"`` is the reference's literal
  list, which matches ResNet-50 and timm's ViT-B/16 alone.
- Images whose sides the patch grid does not divide are resized per side; the reference takes the
  width for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tta import losses, norms
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.factory import adapters
from tta.published import figures

PUBLISHED = (
    *figures(
        "Cascol-Chen/ZeroSiam",
        "README, table of online label shift",
        {"imagenet-c/label-shift-50k/resnet50-gn": 56.1},
        options={"plpd_threshold": 0.2},
        note="stated as accuracy",
    ),
    *figures(
        "Cascol-Chen/ZeroSiam",
        "README, table of online label shift",
        {"imagenet-c/label-shift-50k/vit-b-16-augreg-imagenet": 38.6},
        options={"plpd_threshold": 0.2, "lr": 0.001},
        note="stated as accuracy; the weights follow from the table's unadapted accuracy",
    ),
)


@adapters.register()
class DeYO(Adapter):
    """Entropy minimisation on confident, shape-driven samples, weighted by both measures."""

    needs = Needs(norms=frozenset(norms.AFFINE_KINDS))
    check_options = tuple(
        # An untrained model is close to uniform: these thresholds let some of its samples pass.
        {"entropy_threshold": 1.5, "plpd_threshold": -1e-4, "lr": 1e-2, "destruction": kind}
        for kind in ("patch", "pixel", "occlusion")
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(norms.AffineConfig):
        """Defaults of the official configuration; 'mild' ImageNet-C uses ``plpd_threshold=0.3``."""

        lr: float = param(2.5e-4, "learning rate; official main.py at batch 64", gt=0)
        entropy_threshold: float = param(0.5, "tau_Ent as a factor of ln K; eq. 7", ge=0)
        entropy_margin: float = param(0.4, "Ent_0 as a factor of ln K; eq. 10", ge=0)
        plpd_threshold: float = param(0.2, "tau_PLPD; .2 wild, .3 mild, .5 biased", ge=-1, le=1)
        filter_entropy: bool = param(True, "select by entropy")
        filter_plpd: bool = param(True, "select by the drop of the pseudo-label's probability")
        reweight_entropy: bool = param(True, "weight by exp(Ent_0 - entropy)")
        reweight_plpd: bool = param(True, "weight by exp(PLPD)")
        destruction: Literal["patch", "pixel", "occlusion"] = param(
            "patch", "how the shape is destroyed; section 4.2"
        )
        patch_grid: int = param(4, "patches per side of 'patch'", ge=2)
        occlusion_size: int | None = param(None, "pixels; half the side if not set", gt=0)
        occlusion_row: int | None = param(None, "top of the window; centred if not set", ge=0)
        occlusion_column: int | None = param(None, "left of the window; centred if not set", ge=0)
        skip_top: norms.Skip = param("depth", "deep layers to leave out; see Deviations")

    config: Config

    def setup(self) -> None:
        """Batch statistics in every BatchNorm; gradients for scale and shift below the top."""
        self.add_optimizer(self.config, norms.adapt_affine(self.model, self.config))

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, K)`` from before the last update."""
        for step in range(self.config.steps):
            logits = self._step(x, step)
        return logits

    def _step(self, x: Tensor, step: int) -> Tensor:
        config = self.config
        logits = self.logits(x)
        entropy = losses.entropy(logits)
        log_classes = math.log(logits.shape[1])
        self.record(entropy=entropy.mean(), selected_fraction=0.0)

        confident = torch.arange(len(x), device=x.device)
        if config.filter_entropy:
            confident = (entropy < config.entropy_threshold * log_classes).nonzero()[:, 0]
        if not len(confident):
            return logits
        plpd = self._label_drop(x, logits.detach(), confident, step)
        chosen = (
            plpd > config.plpd_threshold if config.filter_plpd else torch.full_like(plpd, 1) > 0
        )
        selected, plpd = confident[chosen], plpd[chosen]
        if not len(selected):
            return logits

        entropy = entropy[selected]
        weight = torch.ones_like(plpd)
        if config.reweight_entropy or config.reweight_plpd:
            margin = config.entropy_margin * log_classes
            weight = config.reweight_entropy * (margin - entropy.detach()).exp()
            weight = weight + config.reweight_plpd * plpd.exp()
        loss = (weight * entropy).mean()
        self.update(loss, images=len(selected))
        self.record(loss=loss, selected_fraction=len(selected) / len(x))
        return logits

    def _label_drop(self, x: Tensor, logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """Pseudo-label probability difference of ``rows``, shape ``(len(rows),)``; eq. 6."""
        with torch.no_grad():
            destroyed = self.logits(self.destroy(x, rows, step)).softmax(1)
        before = logits[rows].softmax(1)
        label = before.argmax(1, keepdim=True)
        return (before.gather(1, label) - destroyed.gather(1, label))[:, 0]

    def destroy(self, x: Tensor, rows: Tensor, step: int = 0) -> Tensor:
        """Images ``rows`` of ``x`` ``(B, C, H, W)`` with their shape destroyed, same shape."""
        images = x[rows].detach()
        if self.config.destruction == "occlusion":
            return self._occlude(images)
        height, width = images.shape[-2:]
        if self.config.destruction == "pixel":
            order = torch.randperm(height * width, generator=self.generator(f"pixel/{step}"))
            return images.flatten(2)[:, :, order.to(x.device)].view_as(images)
        grid = self.config.patch_grid
        order = self.patch_permutations(len(x), step).to(x.device)[rows]
        return _shuffle_patches(images, order, grid)

    def patch_permutations(self, images: int, step: int = 0) -> Tensor:
        """Permutations ``(images, patch_grid ** 2)`` int64: slot ``j`` shows patch ``[i, j]``."""
        patches = self.config.patch_grid**2
        keys = torch.rand(images, patches, generator=self.generator(f"patch/{step}"))
        return keys.argsort(dim=1)

    def _occlude(self, images: Tensor) -> Tensor:
        config, (height, width) = self.config, images.shape[-2:]
        size_h = config.occlusion_size or height // 2
        size_w = config.occlusion_size or width // 2
        top = (height - size_h) // 2 if config.occlusion_row is None else config.occlusion_row
        left = (width - size_w) // 2 if config.occlusion_column is None else config.occlusion_column
        out = images.clone()
        mean = images.mean(dim=(2, 3), keepdim=True)
        out[:, :, top : top + size_h, left : left + size_w] = mean
        return out


def _shuffle_patches(images: Tensor, order: Tensor, grid: int) -> Tensor:
    batch, channels, height, width = images.shape
    inner = (height // grid * grid, width // grid * grid)
    x = images if inner == (height, width) else _resize(images, inner)
    rows, columns = inner[0] // grid, inner[1] // grid
    x = x.view(batch, channels, grid, rows, grid, columns).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(batch, grid * grid, channels, rows, columns)
    x = x[torch.arange(batch, device=x.device)[:, None], order]
    x = x.view(batch, grid, grid, channels, rows, columns).permute(0, 3, 1, 4, 2, 5)
    x = x.reshape(batch, channels, *inner)
    return x if inner == (height, width) else _resize(x, (height, width))


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
