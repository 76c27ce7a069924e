"""Each of our plug-ins in a stock Avalanche script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from torch import Tensor

from continual.avalanche_data import as_dataset
from continual.avalanche_host import AvalancheHost
from continual.plugin import Host, Plugin
from streams.learning_types import ForgetRequest, Samples
from tta.errors import AdapterError

_COUNTERS = ("experience", "step", "forwards", "backwards")


def extra_passes(strategy: Any) -> tuple[int, int]:
    """Images that our plug-ins sent forward and back since this was asked last."""
    host = _shared_host(strategy)
    if host is None:
        return 0, 0
    made = host.forwards, host.backwards
    host.forwards = host.backwards = 0
    return made


def note_keys(strategy: Any, keys: Tensor | None) -> None:
    """Tell our plug-ins the ids ``(B,)`` of the batch that was just loaded."""
    host = _shared_host(strategy)
    if host is not None:
        host.loaded_keys = keys


def note_past(strategy: Any, past: Sequence[Samples]) -> None:
    """Tell our plug-ins the samples of each finished experience."""
    bridges = _bridges(strategy)
    if bridges:
        bridges[0]._enter(strategy).past = list(past)


def as_plugin(plugin: Plugin, *, num_classes: int | None = None, seed: int = 0) -> Any:
    """One of our plug-ins as an Avalanche plug-in: ``plugins=[as_plugin(plugin)]``.

    Our hooks are called where Avalanche has the same moment. Two things cannot always be had, and
    raise ``AdapterError`` when they are missed: ``classify`` under a strategy that computes its
    loss without its criterion, and ``choose_epoch`` beside a plug-in that loads its own batches.

    Args:
        plugin: The plug-in (``continual.create_plugins("der-pp")[0]``).
        num_classes: Width ``K`` of the head; found by a forward of one image where ``None``.
        seed: Seed of what the plug-in draws.

    Returns:
        An instance of ``avalanche.core.SupervisedPlugin``.
    """
    if not isinstance(plugin, Plugin):
        raise AdapterError(f"as_plugin takes one of our plug-ins, got a {type(plugin).__name__}")
    return _plugin_class()(plugin, num_classes, seed)


@cache
def _plugin_class() -> Any:
    from avalanche.core import SupervisedPlugin

    class AvalanchePlugin(PluginBridge, SupervisedPlugin):  # type: ignore[misc]
        """A plug-in of ours that Avalanche calls."""

    return AvalanchePlugin


class PluginBridge:
    """Avalanche's moments as our hooks, for one plug-in of ours."""

    def __init__(self, plugin: Plugin, num_classes: int | None, seed: int) -> None:
        super().__init__()
        self.plugin = plugin
        self.num_classes = num_classes
        self.seed = seed
        self._started = self._attached = False
        self._host: AvalancheHost | None = None
        self._saved: Mapping[str, Any] | None = None
        self._epochs: int | None = None
        self._criterion: _Criterion | None = None

    @property
    def host(self) -> Host:
        """The strategy as the plug-in sees it."""
        assert self._host is not None, "the plug-in is in no strategy yet"
        return cast(Host, self._host)

    def state_dict(self) -> dict[str, Any]:
        """State of the plug-in, and the host's counters."""
        counters = {n: getattr(self._host, n) for n in _COUNTERS} if self._host else self._saved
        return {
            "plugin": self.plugin.state_dict(),
            "started": self._started,
            "counters": counters,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that ``state_dict`` gave."""
        self.plugin.load_state_dict(state["plugin"])
        self._started = bool(state["started"])
        self._saved = state["counters"]

    def forget(
        self, learner: Any, request: ForgetRequest, everything: Samples, retained: Samples
    ) -> bool:
        """Let the plug-in serve a request to forget."""
        host = self._enter(learner.strategy)
        self._attach()
        host.everything = everything
        try:
            return self.plugin.forget(self.host, request, retained)
        finally:
            host.everything = None

    # Avalanche's moments, in their order ----------------------------------------------------

    def before_train_dataset_adaptation(self, strategy: Any, **_: Any) -> None:
        """An experience begins; the first one sets the plug-in up."""
        host = self._enter(strategy)
        if self._leads(strategy):
            host.experience += 1
            host.epoch = host.step_in_experience = 0
            host.in_epochs = False
        self._attach()
        if not self._started:
            self._started = True
            self.plugin.setup(self.host)

    def after_train_dataset_adaptation(self, strategy: Any, **_: Any) -> None:
        """The plug-in chooses the samples."""
        host = self._enter(strategy)
        data = host.data
        chosen = self.plugin.choose(self.host, data)
        if chosen is not data:
            strategy.adapted_dataset = as_dataset(chosen)

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Data and loader are there."""
        host = self._enter(strategy)
        self._epochs = strategy.train_epochs
        strategy.train_epochs = self.plugin.num_epochs(self.host, host.epochs)
        if self._last(strategy):
            # All have said how many epochs they want.
            bridges = _bridges(strategy)
            sizes = [len(host.data)] * host.epochs
            for bridge in bridges:
                sizes = bridge.plugin.epoch_sizes(self.host, sizes)
            host.steps_in_experience = sum(-(-n // host.batch_size) for n in sizes)
            for bridge in bridges:
                bridge.plugin.begin_experience(self.host)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """The plug-ins choose the samples of the epoch."""
        host = self._enter(strategy)
        if not self._leads(strategy):
            return
        host.epoch += host.in_epochs
        host.in_epochs = True
        bridges = _bridges(strategy)
        if self._criterion is None and any(_overrides(b.plugin, "classify") for b in bridges):
            self._criterion = strategy._criterion = _Criterion(bridges, strategy._criterion)
        if any(_overrides(bridge.plugin, "choose_epoch") for bridge in bridges):
            self._choose_epoch(strategy, host, **kwargs)

    def _choose_epoch(self, strategy: Any, host: AvalancheHost, **kwargs: Any) -> None:
        from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader
        from torch.utils.data import DataLoader

        if not isinstance(strategy.dataloader, (TaskBalancedDataLoader, DataLoader)):
            raise AdapterError(
                "a plug-in of ours chooses the samples of each epoch, but another one loads its "
                f"own batches ({type(strategy.dataloader).__name__}): leave one of them out"
            )
        samples = host.data
        for bridge in _bridges(strategy):
            samples = bridge.plugin.choose_epoch(self.host, samples)
        whole = strategy.adapted_dataset
        strategy.adapted_dataset = as_dataset(samples)
        strategy.make_train_dataloader(**kwargs)
        strategy.adapted_dataset = whole

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """The batch is there."""
        host = self._enter(strategy)
        if self._leads(strategy):
            host.load()
        self.plugin.begin_step(self.host)

    def before_forward(self, strategy: Any, **_: Any) -> None:
        """The criterion, asked after the forward, is the plug-in's."""
        if self._criterion is not None:
            self._criterion.armed, self._criterion.asked = True, False

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """The loss is there."""
        if self._criterion is not None:
            self._criterion.armed = False
            if not self._criterion.asked:
                raise AdapterError(
                    f"{type(strategy).__name__} computes its loss without its criterion: a "
                    "plug-in that replaces the classification loss has no part in it"
                )
        term = self.plugin.add_loss(self.host)
        if term is not None:
            strategy.loss = strategy.loss + term

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Gradients are there."""
        self.plugin.after_backward(self.host)

    def after_update(self, strategy: Any, **_: Any) -> None:
        """The optimiser has stepped."""
        self.plugin.after_step(self.host)

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        """The step ends."""
        if self._last(strategy):
            host = self._enter(strategy)
            host.step += 1
            host.step_in_experience += 1

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """The experience ends."""
        self.plugin.end_experience(self.host)
        if self._criterion is not None:
            strategy._criterion = self._criterion.own
            self._criterion = None
        if self._last(strategy):
            host = self._enter(strategy)
            host.past = [*host.past, host.samples_of(strategy.experience.dataset)]
            # The first plug-in saw the epochs that the strategy had by itself.
            strategy.train_epochs = _bridges(strategy)[0]._epochs

    # ----------------------------------------------------------------------------------------

    def _enter(self, strategy: Any) -> AvalancheHost:
        if self._host is None or self._host.strategy is not strategy:
            self._host = _shared_host(strategy) or AvalancheHost(
                strategy, self.num_classes, self.seed
            )
        if self._saved is not None:
            for name, value in self._saved.items():
                setattr(self._host, name, value)
            self._saved = None
        return self._host

    def _attach(self) -> None:
        if not self._attached:
            self._attached = True
            self.plugin.attach(self.host)

    def _leads(self, strategy: Any) -> bool:
        return _bridges(strategy)[0] is self

    def _last(self, strategy: Any) -> bool:
        return _bridges(strategy)[-1] is self


class _Criterion:
    """A strategy's criterion that asks our plug-ins first while a training step is under way."""

    def __init__(self, bridges: list[PluginBridge], own: Any) -> None:
        self.bridges, self.own = bridges, own
        self.armed = self.asked = False

    def __call__(self, logits: Tensor, y: Tensor) -> Any:
        self.asked = True
        for bridge in self.bridges if self.armed else ():
            loss = bridge.plugin.classify(bridge.host)
            if loss is not None:
                return loss
        return self.own(logits, y)


def _bridges(strategy: Any) -> list[PluginBridge]:
    return [p for p in strategy.plugins if isinstance(p, PluginBridge)]


def _shared_host(strategy: Any) -> AvalancheHost | None:
    """The host that the plug-ins of a strategy have in common, once one of them has made it."""
    made = (bridge._host for bridge in _bridges(strategy))
    return next((host for host in made if host and host.strategy is strategy), None)


def _overrides(plugin: Plugin, hook: str) -> bool:
    return getattr(type(plugin), hook) is not getattr(Plugin, hook)
