"""The global generators that Avalanche draws from, and the warnings that it gives itself."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Seed ``random``, numpy and torch, each by its own ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: str) -> dict[str, Any]:
    """States of ``random``, numpy and torch, as plain containers and tensors."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda: list[Tensor] = torch.cuda.get_rng_state_all() if device.startswith("cuda") else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what ``random_state`` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(
        (name, keys.cpu().numpy().astype(np.uint32), int(position), int(has_gauss), float(cached))
    )
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([part.cpu() for part in state["cuda"]])


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, deprecations that Avalanche meets in its own code are not shown: they are no news."""
    with warnings.catch_warnings():
        show: Any = warnings.showwarning

        def others(message: Any, category: Any, filename: str, *rest: Any) -> None:
            theirs = "avalanche" in Path(filename).parts
            if not (theirs and issubclass(category, DeprecationWarning)):
                show(message, category, filename, *rest)

        warnings.showwarning = cast(Any, others)
        yield
