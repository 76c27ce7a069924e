"""Backbones from timm: published weights, the hub's cache, or a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tta.backbone_types import (
    Request,
    Source,
    file_origin,
    keep_new_classifier,
    not_installed,
    width,
    with_new_classifier,
)
from tta.checkpoints import load_weights, mismatches, read_checkpoint
from tta.config import did_you_mean
from tta.errors import BackboneError

# Long enough for a slow proxy, short enough that nobody waits a minute to hear "no network".
_PROBE_SECONDS = 10.0


def from_timm(request: Request) -> Source:
    """Build a timm model with the pre-processing that its own configuration names.

    Raises:
        BackboneError: If the name is unknown, or the weights are absent or do not fit.
    """
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError:
        raise not_installed(request, "timm") from None
    name = request.name
    base = name.partition(".")[0]
    if not timm.is_model(base):
        hint = did_you_mean(base, timm.list_models())
        raise BackboneError(
            f"timm {timm.__version__} has no model {base!r}{hint}; timm.list_models() lists all"
        )
    tags = timm.list_models(f"{base}.*", pretrained=True)
    if "." in name and name not in tags:
        raise BackboneError(
            f"timm {timm.__version__} has no weights {name!r}{did_you_mean(name, tags)}; "
            f"{base} has: {', '.join(tags) or 'none'}"
        )
    config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    heads = [config.classifier] if isinstance(config.classifier, str) else config.classifier or []
    file = request.checkpoint or _hub_file(request, config)
    if file is None:
        model, classes = _timm_download(request, config)
        weights = f"timm {name}: {_hub_name(config)}"
    else:
        state = read_checkpoint(file)
        own = next((w for w in (width(state, head) for head in heads) if w), config.num_classes)
        classes = request.num_classes or own
        model = timm.create_model(name, pretrained=False, num_classes=classes)
        state = _timm_layout(model, state)
        weights = file_origin(file)
        if request.checkpoint is None:
            weights = f"timm {name}: {_hub_name(config)}"
            if classes != own:
                state = keep_new_classifier(state, model, heads)
        load_weights(model, state, model_name=request.spec, file_name=file.name)
    if request.checkpoint is None and classes != config.num_classes:
        weights = with_new_classifier(weights, classes)
    data = resolve_model_data_config(model)
    return Source(
        model=model,
        num_classes=classes,
        input_size=(data["input_size"][1], data["input_size"][2]),
        mean=data["mean"],
        std=data["std"],
        interpolation=data["interpolation"],
        weights=weights,
    )


def _timm_layout(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Older checkpoints of a family are renamed by timm's own filter, where it has one."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or not mismatches(model, state):
        return state
    try:
        converted = convert(dict(state), model)
    except Exception:  # it assumes its own family; let the caller name the keys that differ
        return state
    return converted if isinstance(converted, dict) else state


def _hub_file(request: Request, config: Any) -> Path | None:
    """The weights in the hub's cache, so that a machine without network does not ask the hub.

    Raises:
        BackboneError: If they are neither there nor within reach.
    """
    if not config.has_weights:
        raise BackboneError(
            f"timm publishes no weights for {request.name!r}: give a file with checkpoint=FILE "
            "(--checkpoint FILE)"
        )
    if not config.hf_hub_id or config.custom_load:
        return None
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
    except ImportError:
        raise not_installed(request, "huggingface_hub") from None
    for file_name in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(config.hf_hub_id, file_name) if file_name else None
        if isinstance(cached, str):
            return Path(cached)
    try:
        HfApi().model_info(config.hf_hub_id, timeout=_PROBE_SECONDS)
    except Exception as error:  # requests or httpx, by version of the hub's client
        raise _unreachable(request, config, error) from None
    return None


def _timm_download(request: Request, config: Any) -> tuple[nn.Module, int]:
    import timm

    classes = request.num_classes or config.num_classes
    try:
        model = timm.create_model(request.name, pretrained=True, num_classes=classes)
    except Exception as error:  # urllib, requests, httpx or the hub's own, by version
        raise _unreachable(request, config, error) from None
    return model, classes


def _hub_name(config: Any) -> str:
    return str(config.hf_hub_id or config.url or "unknown")


def _unreachable(request: Request, config: Any, error: Exception) -> BackboneError:
    where = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    return BackboneError(
        f"{request.spec}: the weights {_hub_name(config)} are not on this machine and cannot be "
        f"downloaded ({type(error).__name__}); fetch model.safetensors from {where} elsewhere and "
        "give it with checkpoint=FILE (--checkpoint FILE)"
    )
