"""Puts a state of ``continual.avalanche_save`` back into a fresh Avalanche strategy."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from continual.avalanche_state import (
    FACTORIES,
    MAKERS,
    SEQUENCES,
    UnknownState,
    shapes_of,
    tensors_of,
)

_MISSING = object()


class Loader:
    """Restores one strategy, once.

    Nothing is changed before all is understood: a state that does not fit leaves the strategy as
    it was.

    Args:
        strategy: A fresh strategy, built as the saved one was.
        datasets: Datasets ``(T)`` of our experiences.
    """

    def __init__(self, strategy: Any, datasets: list[Any]) -> None:
        self.strategy = strategy
        self.model: nn.Module = strategy.model
        self.datasets = datasets
        self._named = dict(self.model.named_parameters())
        self._found: dict[int, Any] = {}
        self._later: list[Callable[[], None]] = []

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``Saver.save`` gave; raises ``UnknownState`` where it does not fit."""
        self._rebuild_module(state["model"], self.model)
        self._value(state["strategy"], self.strategy)
        for act in self._later:
            act()

    def _value(self, node: Mapping[str, Any], current: Any) -> Any:
        kind = node["is"]
        if kind == "plain":
            return node["value"]
        if kind == "tensor":
            return node["value"].to("cpu" if node["cpu"] else self.strategy.device, copy=True)
        if kind == "parameter":
            return self._named[node["name"]]
        if kind == "array":
            array = node["value"].cpu().numpy().copy()
            return array[()] if node["item"] else array
        if kind == "maker":
            return MAKERS[node["name"]]
        if kind == "device":
            return torch.device(node["value"])
        if kind == "module of the model":
            return self.model.get_submodule(node["name"])
        if kind == "seen":
            return self._found[node["number"]]
        if kind == "kept" and current is _MISSING:
            raise UnknownState("a function or an evaluator came in while training")
        made = current if kind == "kept" else self._rebuild(kind, node, current)
        if "number" in node:
            self._found[node["number"]] = made
        return made

    def _rebuild(self, kind: str, node: Mapping[str, Any], current: Any) -> Any:
        if kind == "object":
            return self._rebuild_object(node, current)
        if kind == "dict":
            return self._rebuild_dict(node, current)
        if kind == "dataset":
            return self._rebuild_dataset(node)
        if kind == "copy":
            made = deepcopy(self.model)
            self._found[node["number"]] = made
            self._rebuild_module(node, made)
            return made
        if "items" in node:
            old = list(current) if isinstance(current, (list, tuple)) else []
            old += [_MISSING] * len(node["items"])
            items = [self._value(n, old[k]) for k, n in enumerate(node["items"])]
            if kind == "list" and isinstance(current, list):
                # Others may hold the list itself, as a strategy's plug-ins do.
                self._later.append(lambda: current.__setitem__(slice(None), items))
                return current
            if kind == "deque":
                return deque(items, maxlen=node["limit"])
            return SEQUENCES[kind](items)
        if current is _MISSING:
            raise UnknownState(f"a {kind} came in while training")
        self._rebuild_in_place(kind, node, current)
        return current

    def _rebuild_in_place(self, kind: str, node: Mapping[str, Any], current: Any) -> None:
        if kind == "ours":
            self._later.append(lambda: current.load_state_dict(node["state"]))
        elif kind == "generator":
            self._later.append(lambda: current.set_state(node["state"].cpu()))
        elif kind == "module":
            self._rebuild_module(node, current)
        elif kind == "scheduler":
            state = {k: self._value(v, _MISSING) for k, v in node["state"].items()}
            self._later.append(lambda: current.load_state_dict(state))
        else:
            self._rebuild_optimizer(node, current)

    def _rebuild_module(self, node: Mapping[str, Any], module: Any) -> None:
        if not isinstance(module, nn.Module) or shapes_of(module) != {
            name: value.shape for name, value in node["values"].items()
        }:
            raise UnknownState(f"a {type(module).__name__} has other weights than when saved")
        parts = dict(module.named_modules())
        for path, extra in node["extras"].items():
            name, _, key = path.rpartition("/")
            if name not in parts:
                raise UnknownState(f"a {type(module).__name__} has other parts than when saved")
            own = parts[name].__dict__
            value = self._value(extra, own.get(key, _MISSING))
            self._later.append(partial(own.__setitem__, key, value))

        def act() -> None:
            with torch.no_grad():
                for name, value in tensors_of(module).items():
                    value.copy_(node["values"][name])
            for part, training in zip(module.modules(), node["training"], strict=True):
                part.training = training
            for parameter, asked in zip(module.parameters(), node["gradients"], strict=True):
                parameter.requires_grad_(asked)

        self._later.append(act)

    def _rebuild_object(self, node: Mapping[str, Any], current: Any) -> Any:
        module, _, name = node["class"].partition(":")
        made = current
        if f"{type(current).__module__}:{type(current).__qualname__}" != node["class"]:
            # Only Avalanche's own helpers are built from a name: a state must not run code.
            if module.partition(".")[0] != "avalanche" or "." in name:
                raise UnknownState(f"a {name} came in while training")
            found: Any = getattr(import_module(module), name)
            if not _is_class(found) or not found.__module__.startswith("avalanche."):
                raise UnknownState(f"a {name} came in while training")
            made = found.__new__(found)
        self._found[node["number"]] = made
        for key, item in node["attributes"].items():
            value = self._value(item, getattr(made, "__dict__", {}).get(key, _MISSING))
            self._later.append(partial(made.__dict__.__setitem__, key, value))
        return made

    def _rebuild_dict(self, node: Mapping[str, Any], current: Any) -> Any:
        made: Any = {}
        if node["type"] == "ordered":
            made = OrderedDict()
        elif node["type"] in FACTORIES:
            made = defaultdict(FACTORIES[node["type"]])
        old = current if isinstance(current, dict) else {}
        for key, item in node["items"]:
            key = self._value(key, _MISSING)
            made[key] = self._value(item, old.get(key, _MISSING))
        return made

    def _rebuild_dataset(self, node: Mapping[str, Any]) -> Any:
        from avalanche.benchmarks.utils import DataAttribute, make_avalanche_dataset
        from avalanche.benchmarks.utils.flat_data import FlatData
        from avalanche.benchmarks.utils.utils import concat_datasets

        places = node["places"].cpu().numpy()
        if not len(places):
            return concat_datasets([])
        starts = np.cumsum([0, *(len(dataset) for dataset in self.datasets)])
        experience = np.searchsorted(starts, places, side="right") - 1
        used = np.unique(experience)
        shift = np.zeros(len(self.datasets), dtype=np.int64)
        shift[used] = np.cumsum([0, *(len(self.datasets[n]) for n in used)])[:-1]
        made = self.datasets[used[0]]
        for number in used[1:]:
            made = made.concat(self.datasets[number])
        made = made.subset((places - starts[experience] + shift[experience]).tolist())
        columns = []
        for column in node["columns"]:
            module, _, name = column["class"].partition(":")
            if module.partition(".")[0] != "avalanche":
                raise UnknownState(f"a column of type {name}")
            values = FlatData(
                [[self._value(v, _MISSING) for v in column["values"]]],
                discard_elements_not_in_indices=True,
            )
            found = getattr(import_module(module), name)
            if not _is_class(found) or not issubclass(found, DataAttribute):
                raise UnknownState(f"a column of type {name}")
            columns.append(found(values, name=column["name"], use_in_getitem=column["shown"]))
        if columns or node["plain"]:
            made = make_avalanche_dataset(made, data_attributes=columns)
        return made

    def _rebuild_optimizer(self, node: Mapping[str, Any], optimizer: Optimizer) -> None:
        groups = [
            {
                **{k: self._value(v, _MISSING) for k, v in group["options"].items()},
                "params": [self._named[name] for name in group["params"]],
            }
            for group in node["groups"]
        ]
        moments: dict[Any, Any] = {
            self._named[name]: {k: self._value(v, _MISSING) for k, v in values.items()}
            for name, values in node["moments"].items()
        }
        if len(groups) != len(optimizer.param_groups):
            raise UnknownState("the optimizer has other parameter groups")

        def act() -> None:
            for group, new in zip(optimizer.param_groups, groups, strict=True):
                group.update(new)
            optimizer.state = defaultdict(dict, moments)

        self._later.append(act)


def _is_class(value: object) -> bool:
    return isinstance(value, type)
