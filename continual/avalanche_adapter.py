"""Any adapter of ours as an Avalanche strategy that adapts while it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from continual.life import carry_over
from streams.order import rng
from tta.adapter import Adapter
from tta.errors import AdapterError
from tta.factory import adapter_config, wrap

_RESETS = ("stream", "experience", "never")


@cache
def adapter_strategy_class() -> Any:
    """The class ``AdapterStrategy``; it derives from Avalanche's, so it is made when asked for."""
    from avalanche.training.templates import SupervisedTemplate

    class AdapterStrategy(SupervisedTemplate):  # type: ignore[misc]
        """Learns as ``Naive`` in ``train`` and adapts on the test images in ``eval``.

        The adapter works on a copy of the model, so that after ``eval`` the learner is as it was.
        An ``eval`` in the middle of training (``eval_every``) predicts without adapting.

        Args:
            model: Images ``(B, C, H, W)`` in [0, 1] to logits ``(B, K)``.
            adapter: Name of the method (``tta.list_adapters()``).
            optimizer: Owner of the parameters that learn.
            criterion: Loss of training; cross entropy where ``None``.
            adapter_config: Options of the method.
            reset: When a new adapter is made of the learner's model: before each ``eval``
                (``stream``), before each experience of it, or after training alone (``never``:
                two calls of ``eval`` in a row go on with one adapter).
            carry: Whether the learner goes on from the adapted weights.
            source_images: At most so many seen training images for a method that needs some.
            **kwargs: As of ``avalanche.training.templates.SupervisedTemplate``.

        Raises:
            AdapterError: For an unknown method, option or ``reset``.
        """

        def __init__(
            self,
            *,
            model: nn.Module,
            adapter: str,
            optimizer: torch.optim.Optimizer,
            criterion: Any = None,
            adapter_config: Mapping[str, Any] | None = None,
            reset: Literal["stream", "experience", "never"] = "stream",
            carry: bool = False,
            source_images: int = 2000,
            **kwargs: Any,
        ) -> None:
            criterion = nn.CrossEntropyLoss() if criterion is None else criterion
            super().__init__(model=model, optimizer=optimizer, criterion=criterion, **kwargs)
            if reset not in _RESETS:
                raise AdapterError(f"reset={reset!r}: it is one of {', '.join(_RESETS)}")
            _check_options(adapter, adapter_config or {})
            self.adapter_name = adapter
            self.adapter_config = dict(adapter_config or {})
            self.reset_policy = reset
            self.carry = carry
            self.source_images = source_images
            self.seen_datasets: list[Any] = []
            self.adapter: Adapter | None = None
            self._adapting = self._learning = False

        def train(self, *args: Any, **kwargs: Any) -> Any:
            """Learn; an adapter that was kept belongs to the past."""
            self.adapter = None
            self._learning = True
            try:
                return super().train(*args, **kwargs)
            finally:
                self._learning = False

        def eval(self, *args: Any, **kwargs: Any) -> Any:
            """Predict the given experiences and adapt to them, unless called while training."""
            self._adapting = not self._learning
            try:
                return super().eval(*args, **kwargs)
            finally:
                self._adapting = False

        def forward(self) -> Any:
            """Logits of the batch; in ``eval`` the adapter's."""
            if self.is_training or not self._adapting:
                return super().forward()
            assert self.adapter is not None
            return self.adapter(self.mb_x)

        def _after_training_exp(self, **kwargs: Any) -> None:
            super()._after_training_exp(**kwargs)
            self.seen_datasets.append(self.experience.dataset)

        def _before_eval(self, **kwargs: Any) -> None:
            super()._before_eval(**kwargs)
            if self._adapting and self.reset_policy == "stream":
                self.adapter = None

        def _before_eval_exp(self, **kwargs: Any) -> None:
            super()._before_eval_exp(**kwargs)
            if not self._adapting:
                return
            if self.adapter is None or self.reset_policy == "experience":
                self.adapter = self._wrap()

        def _after_eval(self, **kwargs: Any) -> None:
            super()._after_eval(**kwargs)
            if not self._adapting or self.adapter is None:
                return
            if self.carry:
                carry_over(self.adapter.model, self.model)
            if self.reset_policy != "never":
                self.adapter = None

        def _wrap(self) -> Adapter:
            made = wrap(self.model, self.adapter_name, **self.adapter_config)
            if made.needs.source_data:
                if not self.seen_datasets:
                    raise AdapterError(
                        f"{self.adapter_name} needs source images, and nothing was learnt yet"
                    )
                made.fit_source(self._source(made.needs.source_labels, made.config.seed))
            return made

        def _source(self, labelled: bool, seed: int) -> Iterator[Any]:
            draw = rng(seed, "source images", len(self.seen_datasets))
            each = max(1, self.source_images // len(self.seen_datasets))
            for dataset in self.seen_datasets:
                chosen = sorted(draw.permutation(len(dataset))[:each].tolist())
                for x, y in _batches(dataset.eval().subset(chosen), self.eval_mb_size):
                    x = x.to(self.device)
                    yield (x, y.to(self.device)) if labelled else x

    return AdapterStrategy


def _check_options(adapter: str, options: Mapping[str, Any]) -> None:
    adapter_config(adapter).create(options)


def _batches(dataset: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    # A generator of its own: the order of training must not depend on how often tests are looked at
    loader = DataLoader(dataset, batch_size=size, generator=torch.Generator())
    for x, y, *_ in loader:
        yield x, y
