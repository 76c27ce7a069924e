"""Find a model's linear classifier, and read the features that enter it in the same forward.

A ``Tap`` keeps the classifier's dotted name alone: it holds for the model and for every deep copy
of it (teachers, anchors), it can be pickled, and it leaves nothing behind in the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tta.errors import AdapterError
from tta.masking import Masked


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """The final classifier of a model.

    timm's ``get_classifier()`` is asked where a module of the model has it, wrapped or not; else,
    and where its answer is no classifier, the last module with weights must be one: an
    ``nn.Linear`` or a 1x1 ``nn.Conv2d``.

    Args:
        model: Any module; wrappers around the network (``nn.Sequential``, ``Normalized``,
            ``Masked``, ...) are looked through.

    Returns:
        Its dotted name in ``model`` (``""`` for the model itself) and the module.

    Raises:
        AdapterError: If there is none; the message says what was found instead.
    """
    last = _last_with_weights(model)
    own = next((m for m in model.modules() if callable(getattr(m, "get_classifier", None))), None)
    # Weights after timm's network (a linear probe on top of it) make its classifier an inner layer.
    if own is not None and last in set(own.modules()):
        classifier = own.get_classifier()  # type: ignore[operator]
        if isinstance(classifier, (tuple, list)):
            raise AdapterError(
                f"this method needs one linear classifier, {type(own).__name__} averages "
                f"{len(classifier)}"
            )
        named = _last_with_weights(classifier) if isinstance(classifier, nn.Module) else None
        last = named if _is_linear(named) else last
    if last is None or not _is_linear(last):
        found = "nothing with weights" if last is None else f"{type(last).__name__} there"
        raise AdapterError(
            "this method needs the input of a linear classifier: an nn.Linear or a 1x1 nn.Conv2d "
            f"as the last layer (or timm's get_classifier()), {type(model).__name__} has {found}"
        )
    return next(name for name, module in model.named_modules() if module is last), last


class Tap:
    """Features and logits of one forward.

    Args:
        model: The model whose classifier is looked up; not kept.

    Attributes:
        name: Dotted name of the classifier in the model.
        dim: Length ``D`` of the features.
        classes: Classes ``K`` of the model's answer, masks applied.

    Raises:
        AdapterError: As ``find_head``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.name, head = find_head(model)
        self.dim, classes = _sizes(head)
        masks = self._masks(model)
        self.classes = len(masks[-1].class_ids) if masks else classes

    def __call__(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """One forward of ``model``.

        Args:
            model: The model of the constructor, or a copy of it.
            x: Images ``(B, C, H, W)``.

        Returns:
            What enters the classifier ``(B, D)`` and the model's answer ``(B, K)``; the graph of
            both is kept, in the model's dtype.

        Raises:
            AdapterError: If the classifier is not applied once, to one vector an image.
        """
        seen: list[Tensor] = []

        def catch(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["input"])

        hook = self.head(model).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            logits: Tensor = model(x)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise AdapterError(
                f"the classifier {self.name!r} is applied {len(seen)} times in a forward, not once"
            )
        features = seen[0]
        if features.shape[0] != len(x) or features.numel() != len(x) * self.dim:
            raise AdapterError(
                f"the classifier {self.name!r} sees {tuple(features.shape)} for {len(x)} images: "
                f"this method needs one vector of {self.dim} numbers an image"
            )
        # Under autocast features are narrower than the logits, which the model widens.
        return features.flatten(1).to(logits.dtype), logits

    def head(self, model: nn.Module) -> nn.Module:
        """The classifier of ``model``: an ``nn.Linear`` or a 1x1 ``nn.Conv2d``."""
        return model.get_submodule(self.name)

    def weights(self, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Rows ``(K, D)`` and biases ``(K,)`` (if any) of the classes that ``model`` answers."""
        head = self.head(model)
        weight, bias = head.weight, head.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        weight = weight.flatten(1)
        for mask in self._masks(model):
            weight = weight[mask.class_ids]
            bias = None if bias is None else bias[mask.class_ids]
        return weight, bias

    def classify(self, model: nn.Module, features: Tensor) -> Tensor:
        """Logits ``(B, K)`` of features ``(B, D)`` by the classifier and the class masks alone."""
        return F.linear(features, *self.weights(model))

    def _masks(self, model: nn.Module) -> list[Masked]:
        """The class masks around the classifier, innermost first."""
        parts = self.name.split(".") if self.name else []
        around = (model.get_submodule(".".join(parts[:n])) for n in range(len(parts), -1, -1))
        return [module for module in around if isinstance(module, Masked)]


def _last_with_weights(scope: nn.Module) -> nn.Module | None:
    owners = [m for m in scope.modules() if next(m.parameters(recurse=False), None) is not None]
    # A parametrised layer (weight norm) keeps its tensors in a child: the layer is what counts.
    layers = [m for m in scope.modules() if _is_linear(m)]
    if layers and owners and owners[-1] in set(layers[-1].modules()):
        return layers[-1]
    return owners[-1] if owners else None


def _is_linear(module: nn.Module | None) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _sizes(head: nn.Module) -> tuple[int, int]:
    if isinstance(head, nn.Conv2d):
        return head.in_channels, head.out_channels
    assert isinstance(head, nn.Linear)
    return head.in_features, head.out_features
