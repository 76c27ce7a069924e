"""A student, its averaged teacher and the source model, from three sets of weights and one network.

CoTTA and PETAL share this. The teacher and the source model run through the student's own modules
with their weights put in, so that no module is copied and all three normalise alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tta import losses, norm_layers, norms, views
from tta.config import param
from tta.errors import AdapterError
from tta.optim import GradientConfig

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(GradientConfig):
    """The fields of CoTTA and its descendants; defaults of the official CIFAR-10-C code."""

    optimizer: Literal["sgd", "adam", "adamw"] = param("adam", "update rule; official cfgs")
    teacher_decay: float = param(0.999, "alpha, kept share of the teacher; eq. 2", ge=0, le=1)
    confidence_threshold: float = param(
        0.92, "p_th: below it the views are averaged; .92 / .72 / .1 in eq. 4", ge=0, le=1
    )
    num_views: int = param(32, "N, augmented views of the teacher; eq. 3", ge=1)
    loss: Literal["cross-entropy", "symmetric"] = param(
        "cross-entropy", "eq. 5; symmetric: half of each direction, official ImageNet code"
    )
    parameters: Literal["named", "all"] = param(
        "named", "named: parameters called weight or bias, as the official code collects; or all"
    )
    images_per_forward: int = param(
        32,
        "most augmented 32x32 images in one forward; fewer of larger ones, and no two views with "
        "BatchNorm in channels-last",
        ge=1,
    )


class Target(NamedTuple):
    """The teacher's answer.

    Attributes:
        logits: ``(B, K, ...)``, without a graph.
        confidence: Mean largest probability of the source model, a number in ``[0, 1]``.
        augmented: Whether the logits are a mean over views.
        forwards: Images that went through the network.
    """

    logits: Tensor
    confidence: float
    augmented: bool
    forwards: int


def trainable(model: nn.Module, which: Literal["named", "all"]) -> dict[str, nn.Parameter]:
    """Turn gradients on for the weights of a model.

    Args:
        model: Any module.
        which: ``"named"``: parameters whose own name is ``weight`` or ``bias``; ``"all"``.

    Returns:
        Names and parameters in module order.

    Raises:
        AdapterError: If there is none.
    """
    params = {
        name: parameter
        for name, parameter in model.named_parameters()
        if which == "all" or name.rpartition(".")[2] in ("weight", "bias")
    }
    if not params:
        raise AdapterError(
            f"nothing to adapt: this method needs parameters ({which}), the model has "
            f"{len(list(model.parameters()))} of any name and {norms.inventory(model)}"
        )
    for parameter in params.values():
        parameter.requires_grad_(True)
    return params


def run(model: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """Logits of ``model`` with other weights, without a graph; the model is as before."""
    with torch.no_grad():
        out: Tensor = torch.func.functional_call(model, dict(weights), (x,))
    return out


def like(params: Weights, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names and tensors of ``kept`` that belong to ``params``, on their device, in their dtype.

    Args:
        params: Names in the model and live parameters.
        kept: Tensors under the names in the adapter (``model.<name>``); moved in place once after
            the adapter was moved.
    """
    for name, parameter in params.items():
        kept[f"model.{name}"] = kept[f"model.{name}"].to(parameter)
    return {name: kept[f"model.{name}"] for name in params}


def target(
    model: nn.Module,
    teacher: Weights,
    source: Weights,
    x: Tensor,
    view: Callable[[int], Tensor],
    config: TeacherConfig,
) -> Target:
    """The teacher's logits, averaged over views where the source model is unsure; eq. 3 and 4.

    Args:
        model: The student, whose modules are used.
        teacher: Weights of the teacher.
        source: Weights of the source model.
        x: Images ``(B, C, H, W)``.
        view: Number of a view to its augmented images ``(B, C, H, W)``.
        config: Threshold, number of views, chunk size.
    """
    own = norm_layers.find(model)
    # The statistics of replaced layers are those of the stream: the student's forward moves them.
    with norm_layers.moving(own, on=False):
        confidence = float(run(model, source, x).softmax(1).amax(1).mean())
        if not confidence < config.confidence_threshold:
            return Target(run(model, teacher, x), confidence, False, 2 * len(x))
        layers = views.batch_layers(model)
        apart = bool(own) or views.kept_apart(layers, teacher.values(), len(x))
        logits = views.mean_logits(
            lambda images: run(model, teacher, images),
            layers,
            view,
            config.num_views,
            1 if apart else config.images_per_forward,
        )
    return Target(logits, confidence, True, (1 + config.num_views) * len(x))


def consistency(target_logits: Tensor, logits: Tensor, config: TeacherConfig) -> Tensor:
    """Mean cross-entropy of the student with the teacher, in the form that ``config`` names."""
    if config.loss == "symmetric":
        return losses.symmetric_cross_entropy(logits, target_logits, 0.5).mean()
    return losses.cross_entropy(target_logits, logits).mean()
