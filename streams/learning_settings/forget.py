"""One task after the other, with requests to forget samples or a class in between."""

from __future__ import annotations

import numpy as np

from streams.errors import StreamError
from streams.learning_settings import Arrangement, Request, one_each
from streams.learning_types import ForgetRequest, Item, Samples, joined
from streams.options import Option

OPTIONS: dict[str, tuple[Option, str]] = {
    "what": ("samples", "samples: a part of what was seen; class: all that was seen of one class"),
    "after": ("0", "numbers of the experiences, from 0, after which a request comes, by commas"),
    "fraction": (0.1, "part of the samples seen and not yet forgotten, for samples"),
    "scope": ("seen", "seen: drawn from all experiences so far; last: from the last one alone"),
    "label": (-1, "the class, for class; -1 draws one of those seen for each request"),
}


def arrange(request: Request) -> Arrangement:
    """One experience a task, and a request after each of those named.

    What is asked to be forgotten was seen before, and was in no earlier request.

    Raises:
        StreamError: For an option out of range, a class that was not seen, or nothing to forget.
    """
    after = _after(request)
    request.options.choice("what", ("samples", "class"))
    request.options.choice("scope", ("seen", "last"))
    request.options.number("fraction", 0, 1, open_low=True)
    items: list[Item] = []
    seen: list[Samples] = []
    for number, experience in enumerate(one_each(request.tasks)):
        items.append(experience)
        seen.append(experience.train)
        if number in after:
            asked = _ask(request, seen, number)
            seen = [s.take(np.flatnonzero(~np.isin(s.keys, asked.samples.keys))) for s in seen]
            items.append(asked)
    return Arrangement(tasks=request.tasks, items=tuple(items))


def _after(request: Request) -> set[int]:
    words = request.options.words("after")
    last = len(request.tasks) - 1
    if not words or not all(word.isdecimal() and int(word) <= last for word in words):
        raise StreamError(
            f"after={request.options.of['after']!r} must be numbers from 0 to {last}, between "
            "commas: there is a request after each of these experiences"
        )
    return {int(word) for word in words}


def _ask(request: Request, seen: list[Samples], number: int) -> ForgetRequest:
    everything = joined(seen[-1:] if request.options.of["scope"] == "last" else seen)
    draw = request.draw("forget", number)
    where = f"after_{request.tasks[number].name}"
    if request.options.of["what"] == "class":
        label = _label(request, everything, draw)
        at = np.flatnonzero(everything.labels == label)
        name = f"forget_class_{label}_{where}"
        return ForgetRequest(name=name, kind="class", samples=everything.take(at), label=label)
    count = int(len(everything) * request.options.number("fraction", 0, 1) + 1e-9)
    if not count:
        raise StreamError(
            f"fraction={request.options.of['fraction']} of {len(everything)} samples is none; "
            "take a larger one"
        )
    at = np.sort(draw.permutation(len(everything))[:count])
    return ForgetRequest(
        name=f"forget_samples_{where}", kind="samples", samples=everything.take(at)
    )


def _label(request: Request, everything: Samples, draw: np.random.Generator) -> int:
    labels = np.unique(everything.labels)
    label = int(request.options.of["label"])
    if not len(labels) or (label >= 0 and label not in labels):
        have = ", ".join(map(str, labels.tolist())) or "none"
        raise StreamError(f"label={label} is not there to be forgotten: classes seen are {have}")
    return label if label >= 0 else int(draw.choice(labels))
