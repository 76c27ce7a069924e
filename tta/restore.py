"""A point to come back to: all that a step of an adapter can change, as it is now.

Where a step may fail half-way (out of memory, an interrupt, a fault in a model's code) it can leave
more than half-written weights: layers that hold lent weights, hooks of a forward that never ended,
moments of one parameter and not of the next. ``restore`` puts all of it back, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch

from tta.adapter import Adapter
from tta.errors import AdapterError


class Links:
    """Which objects stand where: the attributes of ``owners``, and what their dicts hold.

    Args:
        owners: Modules and optimisers.
    """

    def __init__(self, owners: Iterable[Any]) -> None:
        self._kept = [
            (
                owner,
                dict(vars(owner)),
                {k: dict(v) for k, v in vars(owner).items() if isinstance(v, dict)},
            )
            for owner in owners
        ]

    def restore(self) -> None:
        """Put every object back in its place; values inside of tensors are left as they are."""
        for owner, attributes, contents in self._kept:
            for name in vars(owner).keys() - attributes.keys():
                del vars(owner)[name]
            vars(owner).update(attributes)
            for name, items in contents.items():
                attributes[name].clear()
                attributes[name].update(items)


class RestorePoint:
    """The state of an adapter now.

    >>> import tta
    >>> from torch import nn
    >>> adapter = tta.wrap(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "tent")
    >>> point = RestorePoint(adapter)
    >>> _ = adapter(torch.rand(2, 3, 8, 8))
    >>> point.restore()
    >>> adapter.num_steps
    0

    Args:
        adapter: Between two steps.

    Attributes:
        state: Copies of its mutable tensors, declared states and optimisers; not to be changed.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        with torch.inference_mode(False):
            self.state = adapter._snapshot()
        optimizers = [getattr(adapter, name) for name in adapter._optimizers]
        self._links = Links([*adapter.modules(), *optimizers])

    def restore(self) -> None:
        """Bring the adapter back to this point; may be called again, after a failure too."""
        self._links.restore()
        for parameter in self._adapter.parameters():
            parameter.grad = None
        with torch.inference_mode(False):
            self._adapter._restore(self.state)


class Reader:
    """A copy of an adapter that answers and never learns; it shares what no step changes.

    Args:
        adapter: Between two steps.

    Raises:
        AdapterError: If the adapter cannot be copied.
    """

    def __init__(self, adapter: Adapter) -> None:
        mutable = {id(tensor) for _, tensor in adapter._mutable_tensors()}
        shared: dict[int, Any] = {id(p): p for p in adapter.parameters() if id(p) not in mutable}
        for kept in (adapter._initial, adapter._fitted):
            shared[id(kept)] = kept
        for name in adapter._optimizers:
            shared[id(getattr(adapter, name))] = object()  # a stand-in: no moments are copied
        try:
            self.adapter = copy.deepcopy(adapter, shared)
        except (RuntimeError, TypeError) as error:
            raise AdapterError(f"the adapter cannot be copied to serve it ({error})") from error
        self.adapter._optimizers.clear()
        self._links = Links(self.adapter.modules())
        self._point: RestorePoint | None = None

    def take(self, point: RestorePoint) -> None:
        """Answer as the adapter did at ``point``."""
        if point is self._point:
            return
        self._point = None  # a copy that is cut short is made again
        with torch.inference_mode(False):
            self.adapter._restore(point.state)
        self._point = point

    def spoilt(self) -> None:
        """An answer was cut short: everything is taken again before the next."""
        self._point = None
        self._links.restore()
