"""The batches that ``fit_source`` is given, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from tta.errors import AdapterError


def checked(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    method: str,
    labelled: bool,
    check: Callable[[Tensor], None],
) -> Iterator[Any]:
    """Images, or pairs of images and labels where the method asks for labels.

    Args:
        batches: Images ``(B, C, H, W)``, or pairs of them with labels ``(B,)``.
        method: Name for the messages.
        labelled: Whether the method asks for labels; they are left out otherwise.
        check: Raises for images that the method cannot take.

    Raises:
        AdapterError: Without a batch, or without labels where the method needs them.
    """
    seen = False
    for batch in batches:
        x, y = (batch, None) if isinstance(batch, Tensor) else batch
        check(x)
        if labelled and y is None:
            raise AdapterError(f"{method} needs labelled source data: pass pairs (images, labels)")
        seen = True
        yield (x, y) if labelled else x
    if not seen:
        raise AdapterError(f"{method} needs source data, got no batch")
