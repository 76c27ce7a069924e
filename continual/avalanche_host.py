"""An Avalanche strategy seen as the loop that our plug-ins know."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from torch import Tensor, nn

from continual.avalanche_data import DatasetSource, as_samples
from streams.learning_types import Samples
from tta.errors import AdapterError


class AvalancheHost:
    """An Avalanche strategy as a ``continual.plugin.Host``.

    All plug-ins of ours in one strategy share it. Images are not augmented here: the strategy's
    datasets do that. Rows that Avalanche's own replay loads with a batch count as current. Ids of
    rows (``keys``) are known in an ``AvalancheLife`` alone: batches carry none.

    Args:
        strategy: The strategy.
        num_classes: Width ``K`` of the head; measured by a forward of one image where ``None``.
        seed: Seed of ``generator``.
    """

    def __init__(self, strategy: Any, num_classes: int | None = None, seed: int = 0) -> None:
        self.strategy = strategy
        self.seed = seed
        self.experience = -1
        self.epoch = self.step = self.step_in_experience = self.steps_in_experience = 0
        self.in_epochs = False
        self.num_current = 0
        self.forwards = self.backwards = 0
        self.raw: Tensor = torch.zeros(0)
        self.keys: Tensor | None = None
        self.loaded_keys: Tensor | None = None
        self.past: list[Samples] = []
        self.everything: Samples | None = None
        self._width = num_classes
        self._foreign = DatasetSource()
        self._data: tuple[Any, Samples] | None = None

    @property
    def model(self) -> nn.Module:
        """The learner."""
        return cast(nn.Module, self.strategy.model)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Owner of its parameters."""
        return cast(torch.optim.Optimizer, self.strategy.optimizer)

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self.strategy.device)

    @property
    def epochs(self) -> int:
        """Epochs of the present experience."""
        return int(self.strategy.train_epochs)

    @property
    def batch_size(self) -> int:
        """New samples a step."""
        return int(self.strategy.train_mb_size)

    @property
    def num_classes(self) -> int:
        """Width ``K`` of the head."""
        if self._width is None:
            modes = [(module, module.training) for module in self.model.modules()]
            x = self.data.batch(torch.zeros(1, dtype=torch.int64).numpy())[0].to(self.device)
            self.model.eval()
            with torch.no_grad():
                self._width = int(self.model(x).shape[1])
            for module, training in modes:
                module.training = training
        return self._width

    @property
    def data(self) -> Samples:
        """Samples of the present experience, as the plug-ins chose them."""
        if self.everything is not None:
            return self.everything
        dataset = self.strategy.adapted_dataset
        if dataset is None:
            dataset = self.strategy.experience.dataset
        if self._data is None or self._data[0] is not dataset:
            self._data = (dataset, self.samples_of(dataset))
        return self._data[1]

    def samples_of(self, dataset: Any) -> Samples:
        """The samples of a dataset of the present experience."""
        return as_samples(dataset, self._foreign, self.experience)

    @property
    def x(self) -> Tensor:
        """Images of the step ``(B, C, H, W)``."""
        return cast(Tensor, self.strategy.mb_x)

    @x.setter
    def x(self, value: Tensor) -> None:
        self.strategy.mbatch[0] = value

    @property
    def y(self) -> Tensor:
        """Labels ``(B,)``."""
        return cast(Tensor, self.strategy.mb_y)

    @y.setter
    def y(self, value: Tensor) -> None:
        self.strategy.mbatch[1] = value

    @property
    def logits(self) -> Tensor:
        """``(B, K)`` with graph, after the forward."""
        return cast(Tensor, self.strategy.mb_output)

    @property
    def loss(self) -> Tensor:
        """Scalar, after the forward."""
        return cast(Tensor, self.strategy.loss).reshape(())

    @loss.setter
    def loss(self, value: Tensor) -> None:
        self.strategy.loss = value

    def extend(self, x: Tensor, y: Tensor) -> None:
        """Add rows to the step's batch: images ``(R, C, H, W)`` and labels ``(R,)``."""
        batch = self.strategy.mbatch
        if len(batch) > 3:
            raise AdapterError(
                f"{type(self.strategy).__name__} loads {len(batch)} columns a batch: a plug-in "
                "cannot add rows to it"
            )
        batch[0] = torch.cat([batch[0], x.to(batch[0])])
        batch[1] = torch.cat([batch[1], y.to(batch[1])])
        if len(batch) == 3:  # task labels, all of them the first one's
            batch[2] = torch.cat([batch[2], batch[2][:1].expand(len(y))])

    def replace(self, rows: int) -> None:
        """Keep only the first ``rows`` current rows of the batch."""
        self.num_current = min(rows, self.num_current)
        batch = self.strategy.mbatch
        batch[:] = [column[: self.num_current] for column in batch]
        self.raw = self.raw[: self.num_current]
        self.keys = None if self.keys is None else self.keys[: self.num_current]

    def load(self) -> None:
        """A batch was loaded: all of its rows are current."""
        self.num_current = len(self.x)
        self.raw = self.x
        keys, self.loaded_keys = self.loaded_keys, None
        self.keys = None if keys is None else keys.to(self.x.device)

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """The images ``(B, C, H, W)`` as they are."""
        return x

    def generator(self, purpose: str) -> torch.Generator:
        """CPU generator keyed by (seed, step, purpose)."""
        key = f"{self.seed}/{self.step}/{purpose}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
        return torch.Generator().manual_seed(seed)

    def count(self, forwards: int = 0, backwards: int = 0) -> None:
        """Add to the images that plug-ins sent forward and back in this step."""
        self.forwards += forwards
        self.backwards += backwards
