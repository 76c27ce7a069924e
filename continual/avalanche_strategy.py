"""Any Avalanche strategy by name: its class is found, its arguments are checked, it is built."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tta.config import did_you_mean
from tta.errors import AdapterError

HOME = "avalanche.training.supervised"
_OBJECTS = ("criterion", "plugins", "evaluator")
_WORDS = {"none": None, "true": True, "false": False}


def from_avalanche(
    name: str,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    **options: Any,
) -> Any:
    """An Avalanche strategy, ready to train.

    >>> model = nn.Linear(4, 2)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> strategy = from_avalanche("EWC", model, sgd, ewc_lambda=1.0)  # doctest: +SKIP

    Without other words it takes batches of 32 for training and of 500 for tests, one epoch, cross
    entropy, no metrics and no logger; Avalanche's own defaults are batches of one and a printer.
    Parameters of the model that the optimiser does not hold are frozen and stay outside of it,
    although Avalanche adds every parameter at its first training.

    Args:
        name: Name of a class in ``avalanche.training.supervised`` (``"EWC"``), or a dotted path:
            ``"package.module:Class"`` or ``"package.module.Class"``.
        model: Images ``(B, C, H, W)`` to logits ``(B, K)``.
        optimizer: Owner of the parameters that learn; ``None`` for a class that takes none.
        **options: Further keyword arguments of the class; texts that read as Python literals
            (``"1"``, ``"0.5"``, ``"none"``, ``"[1, 2]"``) are converted.

    Returns:
        An instance of the class.

    Raises:
        AdapterError: If there is no such class, it is no Avalanche strategy, or an argument is
            unknown (with the nearest one), missing or refused by it.
    """
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates.base import BaseTemplate

    found = find_strategy(name)
    if not (isinstance(found, type) and issubclass(found, BaseTemplate)):
        raise AdapterError(f"{name!r} is no Avalanche strategy: it must derive from BaseTemplate")
    known, required = parameters_of(found)
    given: dict[str, Any] = {key: _literal(value) for key, value in options.items()}
    settable = [key for key in known if key not in ("model", "optimizer")]
    for key, value in given.items():
        if key not in settable:
            raise AdapterError(
                f"{found.__name__} takes no {key!r}{did_you_mean(key, settable)}; "
                f"it takes: {', '.join(settable)}"
            )
        if key in _OBJECTS and isinstance(value, str):
            raise AdapterError(f"{key}={value!r}: it is an object; build the strategy in Python")
    given["model"] = model
    if optimizer is not None:
        given["optimizer"] = optimizer
    for key in ("model", "optimizer"):
        if key in given and key not in known:
            raise AdapterError(
                f"{found.__name__} takes no {key!r} but {', '.join(required)}: build it in Python "
                "and hand it to continual.avalanche.AvalancheLife"
            )
    defaults: dict[str, Any] = {"train_mb_size": 32, "eval_mb_size": 500, "train_epochs": 1}
    # Avalanche's own default would move a model from a GPU to the CPU.
    defaults["device"] = next((p.device for p in model.parameters()), torch.device("cpu"))
    if "criterion" not in given and "criterion" in known:
        defaults["criterion"] = nn.CrossEntropyLoss()
    if "evaluator" not in given and "evaluator" in known:
        defaults["evaluator"] = _silent(EvaluationPlugin)
    given = {**{key: value for key, value in defaults.items() if key in known}, **given}
    missing = [key for key in required if key not in given]
    if missing:
        raise AdapterError(
            f"{found.__name__} needs {', '.join(missing)}; give a value for each "
            f"(it takes: {', '.join(settable)})"
        )
    outside = _freeze_others(model, optimizer)
    try:
        strategy = found(**given)
    except (AssertionError, TypeError, ValueError) as error:
        raise AdapterError(f"{found.__name__} refuses its arguments: {error}") from error
    if outside:
        _keep_groups(strategy, outside)
    return strategy


def find_strategy(name: str) -> Any:
    """The object that a short name or a dotted path means.

    Raises:
        AdapterError: If there is none, with the nearest name.
    """
    module, separator, attribute = name.partition(":")
    if not separator:
        module, _, attribute = name.rpartition(".")
    module = module or HOME
    try:
        home = import_module(module)
    except ModuleNotFoundError as error:
        raise AdapterError(f"there is no module {module!r} for the strategy {name!r}") from error
    if not hasattr(home, attribute):
        classes = [key for key, value in vars(home).items() if _may_be_strategy(value)]
        raise AdapterError(
            f"{module} has no strategy {attribute!r}{did_you_mean(attribute, classes)}; "
            f"known: {', '.join(sorted(classes))}"
        )
    return getattr(home, attribute)


def parameters_of(strategy: type) -> tuple[list[str], list[str]]:
    """Names of all keyword arguments of a class, and of those without a default.

    A ``**kwargs`` of a class leads to the arguments of its parents.
    """
    known: dict[str, None] = {}
    required: list[str] = []
    for number, parent in enumerate(strategy.__mro__):
        own = inspect.signature(parent.__init__).parameters.values()  # type: ignore[misc]
        named = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        known.update((p.name, None) for p in named if p.name != "self")
        if number == 0:
            required = [p.name for p in named if p.default is p.empty and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return list(known), required


def _may_be_strategy(value: object) -> bool:
    return isinstance(value, type) and hasattr(value, "train") and hasattr(value, "eval")


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _silent(plugin: Any) -> Any:
    """An ``EvaluationPlugin`` without metrics; the warning that it logs nothing is not news."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return plugin(loggers=[])


def _freeze_others(model: nn.Module, optimizer: Optimizer | None) -> set[str]:
    """Names of the parameters that the optimiser does not hold; they stop asking for gradients."""
    if optimizer is None:
        return set()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    outside = {name for name, p in model.named_parameters() if id(p) not in held}
    for name, parameter in model.named_parameters():
        if name in outside:
            parameter.requires_grad_(False)
    return outside


def _keep_groups(strategy: Any, outside: set[str]) -> None:
    """Hide the frozen parameters from the instance's ``make_optimizer``, which would add them."""
    from avalanche.training.templates.observation_type import BatchObservation

    if getattr(type(strategy), "make_optimizer", None) is BatchObservation.make_optimizer:
        strategy.make_optimizer = partial(_make_optimizer, strategy, frozenset(outside))


def _make_optimizer(
    strategy: Any,
    outside: frozenset[str],
    reset_optimizer_state: bool = False,
    remove_params: bool = False,
    verbose_optimizer: bool = False,
    **_: Mapping[str, Any],
) -> None:
    from avalanche.models.dynamic_optimizers import update_optimizer

    shown = {n: p for n, p in strategy.model.named_parameters() if n not in outside}
    strategy.optimized_param_id = update_optimizer(
        strategy.optimizer,
        shown,
        strategy.optimized_param_id,
        reset_state=reset_optimizer_state,
        remove_params=remove_params,
        verbose=verbose_optimizer,
    )
