"""Sources whose domains are theirs: fixed names, each with images of its own.

A source may have two members beside those of ``ImageSource``: ``domains(corruptions, severity)``
answers what was asked for, and, where domains have different images, ``members(domain)`` gives the
sorted positions of one. A source's module may have ``CORRUPTIONS``, its names where none is asked
for. A source with an order of its own has ``plan(request)``, which stands for the setting's; one
whose pixels depend on the place in the stream has ``images_at(positions, domain, samples)``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from streams import settings
from streams.corruptions.names import CORRUPTIONS
from streams.errors import StreamError
from streams.order import Plan
from streams.types import Domain, ImageSource, Ints

# Left out images would dilute what these settings promise: draws a class, chances to stay.
_NEEDS_ALL = ("label-shift", "unitta")


def default_names(module: ModuleType, asked: Sequence[str] | None) -> Sequence[str]:
    """What was asked for, or the names of a source's module; the 15 standard ones are no choice."""
    if asked is None or (not isinstance(asked, str) and tuple(asked) == CORRUPTIONS):
        own: Sequence[str] = getattr(module, "CORRUPTIONS", CORRUPTIONS)
        return own
    return asked


def own_domains(source: ImageSource, chosen: list[Domain], setting: str) -> list[Domain]:
    """The source's own domains where it has some, else those chosen.

    Raises:
        StreamError: For a name that the source does not have, or a setting that needs severities,
            or the same images in every domain.
    """
    own: Any = getattr(source, "domains", None)
    if own is None:
        return chosen
    if settings.domain_maker(setting) is not None:
        raise StreamError(
            f"setting {setting!r} changes the severity, and {source.name} has none; "
            "choose another setting"
        )
    severities = sorted({domain.severity for domain in chosen})
    made: list[Domain] = own([domain.corruption for domain in chosen], severities)
    if setting in _NEEDS_ALL and len(made) > 1 and _members(source) is not None:
        raise StreamError(
            f"setting {setting!r} draws from the same images in every domain, and the domains of "
            f"{source.name} have images of their own: name one of {', '.join(d.name for d in made)}"
        )
    return made


def choose(
    domains: Sequence[Domain], asked: Sequence[str], severity: int | Sequence[int], what: str
) -> list[Domain]:
    """The domains asked for by name; all of them where nothing but the default was asked for.

    Args:
        domains: What the source has, none of it with a severity.
        asked: Names; the 15 standard corruptions stand for "no choice".
        severity: What was asked for; 5 stands for "no choice".
        what: Name of the source.

    Raises:
        StreamError: For a name that is not there, or a severity.
    """
    if tuple(np.atleast_1d(severity)) != (5,):
        raise StreamError(f"{what} has no severities, got severity={severity}: leave it out")
    names = [asked] if isinstance(asked, str) else list(asked)
    if tuple(names) == CORRUPTIONS:
        return list(domains)
    have = {domain.name: domain for domain in domains}
    for name in names:
        if name not in have:
            near = difflib.get_close_matches(name, list(have), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise StreamError(f"{what} has no domain {name!r}{hint}; it has {', '.join(have)}")
    return [have[name] for name in names]


def most_images(source: ImageSource, domains: Sequence[Domain]) -> int:
    """Images of the largest domain: what ``num_examples`` may be at most."""
    members = _members(source)
    if members is None:
        return len(source.labels)
    for domain in domains:
        source.check(domain)
    return max(len(members(domain)) for domain in domains)


def first_images(source: ImageSource, domains: Sequence[Domain], count: int, skip: int = 0) -> Ints:
    """Sorted positions of the first ``count`` images of every domain after ``skip`` of them."""
    members = _members(source)
    if members is None:
        return np.arange(skip, skip + count)
    return np.unique(np.concatenate([members(domain)[skip:][:count] for domain in domains]))


def restrict(plan: Plan, source: ImageSource, batch_size: int) -> Plan:
    """The plan without the images that a domain does not have.

    The order of what stays is kept. Batches are cut anew between the borders that the plan has:
    changes of the domain, visits, resets, and short batches.
    """
    members = _members(source)
    if members is None:
        return plan
    keep = np.zeros(len(plan.positions), dtype=bool)
    for number, domain in enumerate(plan.domains):
        here = plan.domain_ids == number
        keep[here] = np.isin(plan.positions[here], members(domain))
    kept = np.concatenate([[0], np.cumsum(keep)])
    offsets: list[int] = []
    resets: list[int] = []
    for first, last in pairwise(_borders(plan, batch_size)):
        start, end = kept[plan.offsets[first]], kept[plan.offsets[last]]
        if start < end:
            if first in plan.reset_steps:
                resets.append(len(offsets))
            offsets += range(start, end, batch_size)
    return replace(
        plan,
        positions=plan.positions[keep],
        domain_ids=plan.domain_ids[keep],
        offsets=np.array([*offsets, kept[-1]], dtype=np.int64),
        reset_steps=tuple(resets),
        visit_starts=tuple(int(kept[start]) for start in plan.visit_starts),
    )


def _borders(plan: Plan, batch_size: int) -> list[int]:
    """Steps at which a new run of batches starts, and the number of steps at the end."""
    # Where batches cross borders a visit may start inside one: no batch is cut for it.
    visits = np.flatnonzero(np.isin(plan.offsets[:-1], plan.visit_starts)).tolist()
    known = {*plan.reset_steps, *visits}
    borders = [0]
    for step in range(1, len(plan)):
        before = plan.domain_ids[plan.offsets[step - 1] : plan.offsets[step]]
        after = plan.domain_ids[plan.offsets[step] : plan.offsets[step + 1]]
        pure = (before == before[0]).all() and (after == after[0]).all()
        changed = pure and before[0] != after[0]
        if changed or len(before) < batch_size or step in known:
            borders.append(step)
    return [*borders, len(plan)]


def _members(source: ImageSource) -> Callable[[Domain], Ints] | None:
    found: Callable[[Domain], Ints] | None = getattr(source, "members", None)
    return found
