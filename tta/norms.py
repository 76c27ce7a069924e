"""Find, enable and re-mode normalisation layers, by what they are rather than by their names."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tta import moments
from tta.config import param
from tta.errors import AdapterError
from tta.optim import GradientConfig

AFFINE_KINDS = ("bn", "gn", "ln", "in", "rms")
Skip = Literal["none", "depth", "names"]
# The literal rule of the official SAR and DeYO code, written for ResNet-50 and ViT-B/16.
_TOP_NAMES = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AffineConfig(GradientConfig):
    """The fields of methods that move scale and shift of normalisation layers by gradients."""

    norm_kinds: tuple[str, ...] = param(AFFINE_KINDS, "kinds of layers to adapt")
    skip_top: Skip = param("none", "deep layers to leave out: none, by depth, or by literal names")


@dataclass(frozen=True, slots=True)
class NormLayer:
    """A normalisation layer: its dotted name in the model, the module, and its kind.

    ``kind`` is ``bn`` (BatchNorm1d/2d/3d, SyncBatchNorm and their timm forms), ``bn-like`` (a layer
    of ``tta.norm_layers`` in the place of one: scale and shift are adapted with those of ``bn``,
    its statistics are its own affair), ``gn``, ``ln``, ``in``, ``rms``, ``frozen`` (batch
    statistics and scale kept as buffers: nothing to adapt) or ``other`` (response normalisation
    and the like).
    """

    name: str
    module: nn.Module
    kind: str


def kind_of(module: nn.Module) -> str | None:
    """Kind of a normalisation layer (see ``NormLayer``); ``None`` for any other module."""
    if getattr(module, "keeps_own_statistics", False) is True:
        return "bn-like"
    for kind, bases in _BASES.items():
        if isinstance(module, bases):
            return kind
    parameters = dict(module.named_parameters(recurse=False))
    bare = not any(next(child.parameters(), None) is not None for child in module.children())
    if bare and hasattr(module, "eps"):
        if (
            not parameters
            and {"running_mean", "running_var"} <= dict(module.named_buffers()).keys()
        ):
            return "frozen"
        vectors = all(p.squeeze().ndim <= 1 for p in parameters.values())
        if parameters and vectors:
            return "rms" if hasattr(module, "normalized_shape") else "other"
    return None


_BASES: dict[str, type[nn.Module] | tuple[type[nn.Module], ...]] = {
    "bn": _BatchNorm,
    "in": _InstanceNorm,
    "gn": nn.GroupNorm,
    "ln": nn.LayerNorm,
}


def find(model: nn.Module) -> list[NormLayer]:
    """All normalisation layers in module order."""
    found = ((name, module, kind_of(module)) for name, module in model.named_modules())
    return [NormLayer(name, module, kind) for name, module, kind in found if kind]


def enable_affine(
    model: nn.Module, *, kinds: Collection[str] = AFFINE_KINDS, skip: Skip = "none"
) -> list[nn.Parameter]:
    """Turn gradients on for scale and shift of the layers of the given kinds.

    Args:
        model: The model; its other parameters are left as they are.
        kinds: Kinds of ``NormLayer`` to adapt; ``bn`` stands for ``bn-like`` too.
        skip: ``none``; ``depth`` leaves out the deepest quarter of the blocks and what follows
            them; ``names`` leaves out the modules that the official SAR and DeYO code names.

    Returns:
        The parameters in module order, weight before bias.

    Raises:
        AdapterError: If there is nothing to adapt; the message counts the layers seen.
    """
    top = top_layers(model, skip)
    params = [
        getattr(layer.module, key)
        for layer in find(model)
        if layer.kind.removesuffix("-like") in kinds and layer.name not in top
        for key in ("weight", "bias")
        if isinstance(getattr(layer.module, key, None), nn.Parameter)
    ]
    if not params:
        raise AdapterError(
            f"nothing to adapt: this method needs a scale or shift in one of {'/'.join(kinds)}, "
            f"the model has {inventory(model)}"
        )
    for parameter in params:
        parameter.requires_grad_(True)
    return params


def adapt_affine(model: nn.Module, config: AffineConfig) -> list[nn.Parameter]:
    """The usual set-up: gradients for scale and shift, batch statistics in every BatchNorm.

    Returns:
        The parameters to optimise.

    Raises:
        AdapterError: As ``enable_affine``.
    """
    params = enable_affine(model, kinds=config.norm_kinds, skip=config.skip_top)
    use_batch_statistics(model)
    return params


def twin(model: nn.Module) -> nn.Module:
    """A copy without gradients that shares what is frozen: all but the buffers and what adapts.

    A teacher or an anchor of a method that moves scale and shift alone needs no more memory.

    Args:
        model: A model whose adapted parameters, and no others, require gradients.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


def inventory(model: nn.Module) -> str:
    """``"3 bn, 2 ln"``, or ``"no normalisation layers"``."""
    counts = Counter(layer.kind for layer in find(model))
    return ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "no normalisation layers"


def use_batch_statistics(model: nn.Module) -> int:
    """Normalise every BatchNorm layer by the current batch (biased variance), always.

    The running statistics stay untouched in the model. Where a layer would see a single value per
    channel (one sample and a 1x1 map) it has no batch statistics, and uses the running ones.

    Returns:
        The number of layers changed.
    """
    layers = [layer.module for layer in find(model) if layer.kind == "bn"]
    for module in layers:
        module.track_running_stats = False  # type: ignore[assignment]
        module.training = True
        module.register_forward_pre_hook(batch_mode_by_size)
    return len(layers)


def batch_mode_by_size(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook: batch statistics where there is more than one value per channel."""
    module.training = args[0].numel() > args[0].shape[1]


def blend_statistics(model: nn.Module, alpha: float | None, prior: float = 0.0) -> int:
    """Normalise every BatchNorm layer by a mixture of running and batch statistics.

    ``(1 - alpha) * running + alpha * batch`` for mean and variance (unbiased); ``alpha=None`` takes
    ``n / (prior + n)`` with the batch size ``n``. Nothing is kept from one call to the next.

    Returns:
        The number of layers changed.
    """
    layers = [layer.module for layer in find(model) if layer.kind == "bn"]
    blendable = [module for module in layers if module._buffers.get("running_mean") is not None]
    for module in blendable:
        blend = _Blend(alpha, prior)
        module.register_forward_pre_hook(blend.before)
        module.register_forward_hook(blend.after, always_call=True)
    return len(blendable)


class _Blend:
    """Lends a BatchNorm layer mixed statistics for one forward, then gives it its own back."""

    def __init__(self, alpha: float | None, prior: float) -> None:
        self.alpha = alpha
        self.prior = prior
        self.own: tuple[Tensor, Tensor] | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x.numel() == x.shape[1]:  # one value per channel: no batch variance
            return
        mean, var = module._buffers["running_mean"], module._buffers["running_var"]
        assert mean is not None
        assert var is not None
        self.own = (mean, var)
        alpha = len(x) / (self.prior + len(x)) if self.alpha is None else self.alpha
        with torch.no_grad():
            batch_var, batch_mean = moments.of_batch(x, correction=1)
            module._buffers["running_mean"] = (1 - alpha) * mean + alpha * batch_mean
            module._buffers["running_var"] = (1 - alpha) * var + alpha * batch_var

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.own is not None:
            module._buffers["running_mean"], module._buffers["running_var"] = self.own
            self.own = None


def top_layers(model: nn.Module, skip: Skip) -> set[str]:
    """Names of the normalisation layers that ``skip`` leaves out (see ``enable_affine``)."""
    names = [layer.name for layer in find(model)]
    if skip == "none":
        return set()
    if skip == "names":
        return {n for n in names if n == "norm" or any(part in n for part in _TOP_NAMES)}
    blocks = _timm_groups(model, names)
    tail: list[str] = []
    # A last group of one layer is the final norm of a transformer: it follows the blocks.
    if len(blocks) > 1 and len(blocks[-1]) == 1:
        tail = blocks.pop()
    if len(blocks) < 2:  # not timm's, or its grouping does not match: by module order
        blocks, tail = [[name] for name in names[1:]], []
    if len(blocks) < 2:
        return set()
    cut = max(1, round(len(blocks) / 4))
    return {*tail, *(name for block in blocks[-cut:] for name in block)}


def _timm_groups(model: nn.Module, names: list[str]) -> list[list[str]]:
    """Norm layers by timm's own depth groups, the stem left out; empty for other models."""
    for prefix, module in model.named_modules():
        if hasattr(module, "group_matcher"):
            from timm.models import group_parameters  # the model is timm's, so timm is there

            dotted = f"{prefix}." if prefix else ""
            members = group_parameters(module, module.group_matcher(coarse=True))
            found = []
            for _, params in list(members.items())[1:]:
                owners = {f"{dotted}{param.rpartition('.')[0]}" for param in params}
                group = [name for name in names if name in owners]
                found += [group] if group else []
            return found
    return []
