"""Run a vision transformer with extra tokens, and read its class token after every block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tta import norms
from tta.errors import AdapterError
from tta.heads import Tap


class Prompted:
    """A timm ``VisionTransformer`` inside a model, by name: it holds for deep copies too.

    Args:
        model: The model, wrapped or not; not kept.
        who: Name of the method, for the message.

    Attributes:
        width: Width ``D`` of the tokens.
        patch: Pixels of a patch, all channels but one counted once (``16 * 16``).

    Raises:
        AdapterError: For any other model, and for one whose classifier does not see the class token
            alone; the message says what was found.
    """

    def __init__(self, model: nn.Module, who: str) -> None:
        found = [(name, module) for name, module in model.named_modules() if _is_vit(module)]
        if not found:
            raise AdapterError(
                f"{who} puts tokens into a timm VisionTransformer; {type(model).__name__} holds "
                f"none, it has {norms.inventory(model)}"
            )
        self._name, vit = found[0]
        odd = _unusable(vit)
        if odd:
            raise AdapterError(
                f"{who} needs a transformer whose classifier sees the class token after the last "
                f"norm; this one has {odd} (and {norms.inventory(model)})"
            )
        self.tap = Tap(model)
        self.width = self.tap.dim
        height, width = vit.patch_embed.patch_size
        self.patch = int(height * width)

    def __call__(
        self, model: nn.Module, x: Tensor, prompts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One forward of all candidates on all images.

        Args:
            model: The model of the constructor, or a copy of it.
            x: Images ``(B, C, H, W)``.
            prompts: Tokens ``(N, P, D)`` of ``N`` candidates, put in after the class token once the
                positions are added; ``None`` for a plain forward (``N = 1``).

        Returns:
            Normalised class tokens ``(N, B, L * D)``, block after block: each through the norm that
            reads it next, so that the last ``D`` are the classifier's input; and logits
            ``(N, B, K)``.
        """
        vit: Any = model.get_submodule(self._name)
        tokens: list[Tensor] = []
        count = 1 if prompts is None else len(prompts)
        hooks = [
            block.register_forward_hook(lambda module, args, out: tokens.append(out[:, 0]))
            for block in vit.blocks[:-1]
        ]
        if prompts is not None:
            rows = prompts.repeat_interleave(len(x), dim=0)

            def insert(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                sequence = args[0]
                return (torch.cat([sequence[:, :1], rows, sequence[:, 1:]], dim=1), *args[1:])

            hooks.append(vit.blocks[0].register_forward_pre_hook(insert))
        try:
            last, logits = self.tap(model, x.repeat(count, 1, 1, 1))
        finally:
            for hook in hooks:
                hook.remove()
        layers = [block.norm1(token) for block, token in zip(vit.blocks[1:], tokens, strict=True)]
        features = torch.cat([*layers, last], dim=1)
        shape = (count, len(x), -1)
        return features.view(shape), logits.view(shape)


def _is_vit(module: nn.Module) -> bool:
    # By name through the bases: timm is not imported where no model of it can be.
    return any(
        base.__name__ == "VisionTransformer" and base.__module__.startswith("timm.")
        for base in type(module).__mro__
    )


def _unusable(vit: Any) -> str:
    if vit.cls_token is None:
        return "no class token"
    if vit.global_pool != "token":
        return f"global_pool={vit.global_pool!r}"
    if not all(hasattr(block, "norm1") for block in vit.blocks):
        return "blocks without norm1"
    if not isinstance(vit.fc_norm, nn.Identity):
        return "a norm of its own before the classifier"
    return ""
