"""QKV: of a vision transformer, only the query, key and value projections and the head learn.

The transformer recipe of Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPRW
2023: everything else of a pre-trained ViT stays as it is; with ``qkv+l2-anchor`` the projections
are also held near the last weights.

Deviations: the paper's code for this variant is not public; that biases of the projections learn
with them is our reading.
"""

from __future__ import annotations

import re

from torch import nn

from continual.factory import strategies
from continual.plugin import Host, Plugin
from tta.errors import AdapterError
from tta.heads import find_head

_PROJECTIONS = (
    *("qkv", "q_proj", "query", "to_q", "q", "k", "v", "kv"),
    *("qkv_proj", "k_proj", "v_proj", "key", "value", "to_qkv", "to_k", "to_v", "to_kv"),
)
_OWN = re.compile(r"(in|[qkv])_proj_(weight|bias)|[qkv]_bias")


def projections(model: nn.Module) -> list[str]:
    """Names of the parameters that make queries, keys and values in a model.

    They are those of the linear layers called ``qkv``, ``q_proj``, ``query``, ... in a module that
    is called or classed as attention, and what ``nn.MultiheadAttention`` holds itself.
    """
    found = set()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        kind = type(module).__name__.lower()
        if "attn" not in last and "attention" not in f"{last.lower()} {kind}":
            continue
        prefix = f"{name}." if name else ""
        for own, _ in module.named_parameters(recurse=False):
            if _OWN.fullmatch(own):
                found.add(prefix + own)
        for child, layer in module.named_children():
            if child in _PROJECTIONS and isinstance(layer, (nn.Linear, nn.Conv2d)):
                found |= {f"{prefix}{child}.{own}" for own, _ in layer.named_parameters()}
    return [name for name, _ in model.named_parameters() if name in found]


@strategies.register()
class Qkv(Plugin):
    """Freezes all parameters but the projections and the head."""

    def attach(self, host: Host) -> None:
        """Freeze; a frozen parameter has no gradient, so that no optimiser moves it."""
        names = projections(host.model)
        if not names:
            raise AdapterError(
                f"qkv needs attention blocks with layers called {', '.join(_PROJECTIONS[:4])}, ... "
                f"or an nn.MultiheadAttention; {type(host.model).__name__} has none"
            )
        learning = {*names}
        head = {id(p) for p in find_head(host.model)[1].parameters()}
        for name, parameter in host.model.named_parameters():
            if name not in learning and id(parameter) not in head:
                parameter.requires_grad_(False)
                parameter.grad = None

    def setup(self, host: Host) -> None:
        """As ``attach``, for loops that know ``setup`` alone."""
        self.attach(host)
