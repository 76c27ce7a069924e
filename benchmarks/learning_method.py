"""What the name of a learning method stands for, and which of its parts an option goes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.errors import UsageError
from benchmarks.spec import parse_options
from tta.config import Config, did_you_mean

LEARNER = "learner"
AVALANCHE = "avalanche"
SOURCE = "source"


@dataclass(frozen=True)
class Method:
    """A learning method in parts.

    Attributes:
        strategies: Names of our strategies, in order; empty where Avalanche learns.
        avalanche: Dotted path of an Avalanche strategy (``avalanche.training.supervised:EWC``).
        adapter: Method that works on the unlabelled segments; ``None``: none was named.
    """

    strategies: tuple[str, ...] = ()
    avalanche: str | None = None
    adapter: str | None = None

    @classmethod
    def read(cls, text: str) -> Method:
        """The method that parts joined by ``+`` name; an adapter alone follows ``naive``.

        Raises:
            UsageError: For a name that is neither strategy nor adapter (with the nearest one), or
                parts that do not go together.
        """
        from continual.factory import list_strategies
        from tta.factory import list_adapters

        ours, adapters = list_strategies(), list_adapters()
        strategies: list[str] = []
        paths: list[str] = []
        chosen: list[str] = []
        for word in text.split("+"):
            name = word.strip()
            plain = name.replace("_", "-")
            if ":" in name:
                paths.append(name)
            elif plain in ours:
                strategies.append(plain)
            elif plain in adapters:
                chosen.append(plain)
            else:
                known = [*ours, *adapters]
                raise UsageError(
                    f"unknown method {name!r}{did_you_mean(plain, known)}; a learning stream takes "
                    f"strategies ({', '.join(ours)}), an adapter beside them, or an Avalanche "
                    "strategy by its path (avalanche.training.supervised:EWC)"
                )
        for group, what in ((paths, "Avalanche strategies"), (chosen, "adapters")):
            if len(group) > 1:
                raise UsageError(f"method {text!r} has two {what}: {', '.join(group)}; name one")
        if paths and strategies:
            raise UsageError(
                f"method {text!r}: {paths[0]} learns by itself and takes none of our strategies "
                f"({', '.join(strategies)}) beside it"
            )
        if len(set(strategies)) < len(strategies):
            raise UsageError(f"method {text!r} names a strategy twice")
        if not strategies and not paths:
            strategies = ["naive"]
        return cls(
            strategies=tuple(strategies),
            avalanche=paths[0] if paths else None,
            adapter=chosen[0] if chosen else None,
        )

    @property
    def name(self) -> str:
        """The parts joined by ``+``."""
        learns = [self.avalanche] if self.avalanche else self.strategies
        return "+".join([*learns, *([self.adapter] if self.adapter else [])])

    @property
    def configs(self) -> dict[str, type[Config]]:
        """Config of each part that has one: ``learner``, the strategies, the adapter."""
        from continual.factory import strategy_config
        from continual.learner import LearnerConfig
        from tta.factory import adapter_config

        made: dict[str, type[Config]] = {LEARNER: LearnerConfig}
        made |= {name: strategy_config(name) for name in self.strategies}
        if self.adapter:
            made[self.adapter] = adapter_config(self.adapter)
        return made

    @property
    def owners(self) -> list[str]:
        """Names before the dot of ``part.key=value``."""
        mine = [AVALANCHE, self.avalanche.rpartition(":")[2]] if self.avalanche else []
        return [*self.configs, *mine]

    def part(self, owner: str) -> str | None:
        """The part that a name before the dot stands for; ``None`` if there is none."""
        if self.avalanche and owner in self.owners[-2:]:
            return AVALANCHE
        plain = owner.replace("_", "-")
        return plain if plain in self.configs else None

    def shared_out(self, options: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Options by part: ``part.key`` to that part, ``key`` to the one part that has it.

        An option that no part has is an argument of an Avalanche strategy, where there is one.

        Raises:
            UsageError: For an option that no part has, with the nearest one, or several have.
        """
        configs = self.configs
        known = {part: [item.name for item in fields(config)] for part, config in configs.items()}
        made: dict[str, dict[str, str]] = {part: {} for part in known}
        if self.avalanche:
            made[AVALANCHE] = {}
        for word, value in options.items():
            owner, dot, key = word.rpartition(".")
            if dot:
                part = self._owner(owner, word)
                if part in known and key not in known[part]:
                    raise UsageError(
                        f"{part} has no option {key!r}{did_you_mean(key, known[part])}; it takes "
                        f"{', '.join(known[part])}"
                    )
            else:
                part = self._only(key, known)
            made[part][key] = value
        return made

    def config(self, options: Mapping[str, str], seed: int) -> dict[str, dict[str, Any]]:
        """Complete and checked options of every part.

        Args:
            options: As ``shared_out`` takes them, as text.
            seed: Of every part that has a seed.

        Raises:
            UsageError: For an option that cannot be placed or read.
            tta.AdapterError: For a value of the wrong type or out of range.
        """
        given = self.shared_out(options)
        made: dict[str, dict[str, Any]] = {}
        for part, config in self.configs.items():
            values = {"seed": seed} | parse_options(config, given[part])
            made[part] = config.create({k: _frozen(v) for k, v in values.items()}).to_dict()
        if self.avalanche:
            made[AVALANCHE] = dict(given[AVALANCHE])
        return made

    def _owner(self, owner: str, word: str) -> str:
        part = self.part(owner)
        if part is None:
            raise UsageError(
                f"--set {word}: {owner!r} is no part of {self.name}"
                f"{did_you_mean(owner, self.owners)}; its parts are {', '.join(self.owners)}"
            )
        return part

    def _only(self, key: str, known: Mapping[str, list[str]]) -> str:
        having = [part for part, names in known.items() if key in names]
        if len(having) > 1:
            forms = " or ".join(f"{part}.{key}" for part in having)
            raise UsageError(f"--set {key}: several parts of {self.name} have it; write {forms}")
        if having:
            return having[0]
        if self.avalanche:
            return AVALANCHE
        every = list(dict.fromkeys(name for names in known.values() for name in names))
        raise UsageError(
            f"unknown option {key!r}{did_you_mean(key, every)}; {self.name} takes "
            + "; ".join(f"{part}: {', '.join(names)}" for part, names in known.items())
        )


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
