"""What the conformance suite runs: adapters made alike, one uninterrupted run to compare with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tta.adapter import Adapter
from tta.config import AdapterConfig


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run over all batches gave."""

    model: nn.Module
    batches: Sequence[Tensor]
    outputs: list[Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    source_before: dict[str, Tensor]
    backwards: float
    live_dropout: list[str]
    global_draws: bool


class Maker:
    """Makes the adapter under test; keeps what an uninterrupted run gives, for all checks."""

    def __init__(self, cls: type[Adapter], config: AdapterConfig | None) -> None:
        self.cls = cls
        self.config = config
        self._runs: list[Whole] = []

    def __call__(self, model: nn.Module) -> Adapter:
        """A fresh adapter around a copy of the model, source data fitted where it needs them."""
        adapter = self.cls(copy.deepcopy(model), self.config)
        if adapter.needs.source_data:
            first = next(model.parameters())
            generator = torch.Generator().manual_seed(0)
            images = torch.rand(16, 3, 32, 32, generator=generator).to(first)
            labels = torch.arange(16) % 4
            adapter.fit_source([(images[:8], labels[:8]), (images[8:], labels[8:])])
        return adapter

    def uninterrupted(self, model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of a fresh adapter over all batches."""
        return self.whole(model, batches).outputs

    def whole(self, model: nn.Module, batches: Sequence[Tensor]) -> Whole:
        """The uninterrupted run of a fresh adapter, made once."""
        for known in self._runs:
            if known.model is model and known.batches is batches:
                return known
        source = copy.deepcopy(model.state_dict())
        adapter = self(model)
        before, draws, backwards, outputs = weights(adapter), torch.get_rng_state(), 0.0, []
        for x in batches:
            outputs.append(adapter(x))
            backwards += adapter.report["backwards"]
        live = [
            name
            for name, module in adapter.named_modules()
            if module.training and "drop" in type(module).__name__.lower()
        ]
        made = Whole(
            model=model,
            batches=batches,
            outputs=outputs,
            before=before,
            after=weights(adapter),
            source_before=source,
            backwards=backwards,
            live_dropout=live,
            global_draws=not torch.equal(draws, torch.get_rng_state()),
        )
        self._runs.append(made)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"cls": self.cls, "config": self.config, "_runs": []}


def equal(left: Tensor, right: Tensor) -> bool:
    """Bitwise equality in which NaN equals NaN."""
    return torch.equal(torch.nan_to_num(left), torch.nan_to_num(right))


def run(adapter: Adapter, batches: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each batch in turn."""
    return [adapter(x) for x in batches]


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether two lists of outputs are bitwise equal."""
    return len(left) == len(right) and all(map(equal, left, right))


def weights(adapter: Adapter) -> dict[str, Tensor]:
    """All tensors of the adapter's state, as copies."""
    return {k: v for k, v in adapter.state_dict().items() if isinstance(v, Tensor)}
