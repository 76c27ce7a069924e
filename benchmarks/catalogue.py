"""What there is to choose from, read without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.corruptions.names import CORRUPTIONS, EXTRA_CORRUPTIONS
from streams.scan import scan
from tta.registry import Registry

if TYPE_CHECKING:
    from tta.embedded import EmbeddedBackbone

_STRATEGIES = "continual.strategies"


def catalogue() -> dict[str, dict[str, str]]:
    """Kind to name to one line."""
    from benchmarks.protocols import protocols
    from tta.embedded import EMBEDDED

    methods: Registry[type] = Registry("method", "tta.adapters", group="tta.adapters")
    sources = scan("streams.sources", "stream")
    settings = scan("streams.settings", "setting")
    strategies: Registry[type] = Registry("strategy", _STRATEGIES, group=_STRATEGIES)
    learning = scan("streams.learning", "learning stream")
    arranged = scan("streams.learning_settings", "learning setting")
    return {
        "methods": {name: methods.summary(name) for name in methods.names()},
        "streams": {name: sources.summary(name) for name in sources.names()},
        "settings": {name: settings.summary(name) for name in settings.names()},
        "strategies": {name: strategies.summary(name) for name in strategies.names()},
        "learning-streams": {name: learning.summary(name) for name in learning.names()},
        "learning-settings": {name: arranged.summary(name) for name in arranged.names()},
        "backbones": {
            **{name: _words(entry) for name, entry in EMBEDDED.items()},
            "efficientnet-lite0": "ImageNet, weights from the package index (extra 'imagenet')",
            "timm:NAME": "any timm model, its own pre-processing inside",
            "torchvision:NAME": "torchvision's default weights",
            "robustbench:NAME@cifar10": "RobustBench's zoo, threat model corruptions",
            "cifar-resnet20": "CIFAR ResNet of any depth 6n + 2, with --checkpoint",
            "mlp-100": "fresh, for learning streams: two hidden layers, any width",
            "small-cnn": "fresh, for learning streams: three convolutions with BatchNorm",
            "slim-resnet18-20": "fresh, for learning streams: ResNet-18, first stage of any width",
        },
        "corruptions": {
            **dict.fromkeys(CORRUPTIONS, "standard"),
            **dict.fromkeys(EXTRA_CORRUPTIONS, "extra"),
        },
        "protocols": {name: p.description for name, p in protocols().items()},
    }


def _words(entry: EmbeddedBackbone) -> str:
    data = entry.data.partition(",")[0]
    return f"embedded, {entry.norm}, {data}: {entry.source_error_pct:.2f} % clean test error"
