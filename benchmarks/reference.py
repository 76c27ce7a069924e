"""The source model's own errors on a stream: measured once, kept in the cache folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.files import write_json
from streams.cache import cache_dir
from streams.errors import StreamError
from streams.jsonfiles import load_json
from streams.types import CLEAN, UNKNOWN, Batch, Stream


@dataclass
class SourceReference:
    """Counts of the source model per domain, filled batch by batch unless they are cached.

    Attributes:
        model: The source model.
        file: Where the finished counts are kept.
        counts: ``[correct, n]`` by domain.
        clean: ``[correct, n]`` on the clean images; ``None`` where the source has none.
        known: Whether the counts came from the cache.
    """

    model: nn.Module
    file: Path
    counts: dict[str, list[int]] = field(default_factory=dict)
    clean: list[int] | None = None
    known: bool = False

    @classmethod
    def open(cls, model: nn.Module, model_key: str, stream: Stream, device: str) -> SourceReference:
        """The reference of a model on a stream, from the cache where it is there.

        ``model_key`` names its weights and its normalisation.
        """
        # Devices and versions round differently: a hit at the border may change sides.
        key = f"{model_key}/{stream.hash}/{stream.dtype}/{device}/{torch.__version__}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        made = cls(model=model, file=cache_dir() / "source" / f"{name}.json")
        try:
            cached: dict[str, Any] = load_json(made.file)
            made.counts, made.clean, made.known = cached["counts"], cached["clean"], True
        except (OSError, ValueError, KeyError, TypeError):
            pass  # absent or damaged: it is measured again
        return made

    def add(self, batch: Batch, stream: Stream, device: str, logits: Tensor | None = None) -> None:
        """Count the source model's hits on one batch, unless they are known.

        Args:
            batch: The batch.
            stream: Its stream.
            device: Where the model runs.
            logits: The source model's logits ``(B, K)`` where the caller has them already.
        """
        if self.known:
            return
        if logits is None:
            hits = _hits(self.model, batch.x.to(device), batch.y)
        else:
            hits = _correct(logits, batch.y)
        for domain_id in torch.unique(batch.domain_ids).tolist():
            here = (batch.domain_ids == domain_id) & (batch.y != UNKNOWN)
            count = self.counts.setdefault(stream.domains[domain_id].name, [0, 0])
            count[0] += int(hits[here].sum())
            count[1] += int(here.sum())

    def finish(self, stream: Stream, device: str) -> None:
        """Measure the clean error, keep the counts; a cache that cannot be written is skipped."""
        if self.known:
            return
        self.clean = clean_counts(self.model, stream, device)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, {"counts": self.counts, "clean": self.clean})
        except OSError:
            pass

    def error_pct(self) -> float:
        """Mean of the domains' errors in percent, over known classes."""
        errors = [100 * (1 - correct / n) for correct, n in self.counts.values() if n]
        return sum(errors) / len(errors)


def clean_counts(predict: Any, stream: Stream, device: str) -> list[int] | None:
    """``[correct, n]`` on the stream's clean images; ``None`` where there are none."""
    try:
        stream.source.check(CLEAN)
    except StreamError:
        return None
    # A clean image that does not decode is an error, not a source without clean images.
    correct = total = 0
    for x, y in stream.clean_batches():
        correct += int(_hits(predict, x.to(device), y).sum())
        total += len(y)
    return [correct, total]


def _hits(predict: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return _correct(predict(x), y)


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    hits: Tensor = (logits.argmax(1).cpu() == y) & logits.isfinite().all(1).cpu()
    return hits
