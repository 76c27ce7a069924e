"""How well a model forgot: accuracies, membership inference, distance to retraining, relapse.

All figures are of eval mode and leave the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from continual.descent import Labelled
from continual.passes import trainable, untouched
from streams.learning_types import Experience, ForgetRequest, LearningStream, Samples
from streams.order import rng
from tta.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Iterable

Attack = Literal["threshold", "svc"]
GAPS = ("accuracy_forgotten_pct", "accuracy_retained_pct", "accuracy_test_pct", "mia_success_pct")
"""The four figures over which the average gap to retraining is taken."""


class Learns(Protocol):
    """What ``retrained`` asks of a learner; ``continual.learner.Learner`` does it."""

    model: nn.Module

    def learn(self, experience: Experience) -> None:
        """Train on one experience."""


def forget_report(
    model: nn.Module,
    forgotten: Labelled,
    retained: Labelled,
    test: Labelled,
    *,
    reference: nn.Module | None = None,
    seconds: float | None = None,
    attack: Attack = "threshold",
    attack_samples: int = 2000,
    seed: int = 0,
    batch_size: int = 500,
) -> dict[str, float | None]:
    """What a model still knows of samples that it was asked to forget.

    Args:
        model: After forgetting.
        forgotten: What it was asked to forget.
        retained: What it may keep.
        test: Samples that it never saw.
        reference: A model of the same shape retrained without the forgotten samples.
        seconds: How long forgetting took; handed on.
        attack: Of ``membership_inference``.
        attack_samples: At most so many members and as many others fit the attack.
        seed: Seed of the draw of those.
        batch_size: Images a forward.

    Returns:
        ``accuracy_forgotten_pct``, ``accuracy_retained_pct``, ``accuracy_test_pct``: right answers
        in % (with unlearning accuracy UA = 100 - the first).
        ``mia_success_pct``: forgotten samples, in %, that the attack still takes for training
        samples (MIA efficacy = 100 - this).
        ``seconds``.
        With a reference: the first four of it as ``reference_<name>``; ``average_gap_pct``, the
        mean of their four absolute differences; ``weight_distance``, the Euclidean length of the
        difference of all trainable parameters; ``disagreement_test_pct`` and
        ``disagreement_forgotten_pct``, samples in % of which the two models predict other classes.
        A figure of an empty set is ``None``.
    """
    sets = {"forgotten": forgotten, "retained": retained, "test": test}

    def look(net: nn.Module) -> tuple[dict[str, float | None], dict[str, Tensor]]:
        seen = {name: _answers(net, data, batch_size) for name, data in sets.items()}
        found = {
            f"accuracy_{name}_pct": _percent(p.argmax(1) == y) for name, (p, y) in seen.items()
        }
        sure = {name: _confidence(p, y) for name, (p, y) in seen.items()}
        success = None
        if all(len(values) for values in sure.values()):
            success = membership_inference(
                sure["retained"],
                sure["test"],
                sure["forgotten"],
                attack=attack,
                most=attack_samples,
                seed=seed,
            )
        found["mia_success_pct"] = success
        return found, {name: p.argmax(1) for name, (p, _) in seen.items()}

    report, predicted = look(model)
    report["seconds"] = seconds
    if reference is not None:
        other, expected = look(reference)
        report |= {f"reference_{name}": other[name] for name in GAPS}
        report["average_gap_pct"] = average_gap(report, other)
        report["weight_distance"] = weight_distance(model, reference)
        for name in ("test", "forgotten"):
            report[f"disagreement_{name}_pct"] = _percent(predicted[name] != expected[name])
    return report


def accuracy_pct(model: nn.Module, samples: Labelled, batch_size: int = 500) -> float | None:
    """Right answers in %, of all classes; ``None`` where there is no sample."""
    p, y = _answers(model, samples, batch_size)
    return _percent(p.argmax(1) == y)


def membership_inference(
    members: Tensor,
    others: Tensor,
    asked: Tensor,
    *,
    attack: Attack = "threshold",
    most: int = 2000,
    seed: int = 0,
) -> float:
    """Share, in %, of the asked samples that an attack on confidences takes for training samples.

    The attack is fitted on as many members as others. ``threshold`` says member from the confidence
    on that separates the two best (of equals the lowest); ``svc`` is a support vector machine with
    an RBF kernel, C = 3 and gamma "auto" (the protocol of the OPTML code; needs scikit-learn).

    Args:
        members: Confidence of the true class ``(M,)`` of training samples.
        others: The same ``(N,)`` of samples never seen.
        asked: The same ``(A,)`` of the samples in question.
        attack: Kind of the attack.
        most: At most so many of each side, drawn at random.
        seed: Seed of that draw.

    Raises:
        AdapterError: If one of the three is empty.

    Example:
        >>> seen, new = torch.tensor([0.9, 0.8]), torch.tensor([0.3, 0.4])
        >>> membership_inference(seen, new, torch.tensor([0.85, 0.2]))
        50.0
    """
    if not (len(members) and len(others) and len(asked)):
        raise AdapterError("membership inference needs members, others and samples in question")
    size = min(len(members), len(others), most)
    draw = rng(seed, "membership inference")
    chosen = [
        values[np.sort(draw.permutation(len(values))[:size])]
        for values in (members.double().numpy(), others.double().numpy())
    ]
    question = asked.double().numpy()
    if attack == "svc":
        from sklearn.svm import SVC

        machine = SVC(C=3, kernel="rbf", gamma="auto")
        machine.fit(np.concatenate(chosen)[:, None], np.repeat([1, 0], size))
        return 100 * float(np.mean(machine.predict(question[:, None]) == 1))
    levels = np.unique(np.concatenate(chosen))
    inside, outside = (np.searchsorted(np.sort(values), levels, "left") for values in chosen)
    # Right: members at or above the level, and others below it.
    level = levels[int(np.argmax(size - inside + outside))]
    return 100 * float(np.mean(question >= level))


def average_gap(
    report: Mapping[str, float | None], reference: Mapping[str, float | None]
) -> float | None:
    """Mean absolute difference of the four figures ``GAPS``, in percentage points."""
    gaps = []
    for name in GAPS:
        mine, other = report[name], reference[name]
        if mine is None or other is None:
            return None
        gaps.append(abs(mine - other))
    return sum(gaps) / len(gaps)


def weight_distance(model: nn.Module, reference: nn.Module) -> float:
    """Euclidean length of the difference of the trainable parameters.

    Raises:
        AdapterError: If the two are not of the same architecture.
    """
    mine, other = trainable(model), dict(reference.named_parameters())
    if any(name not in other or other[name].shape != p.shape for name, p in mine.items()):
        raise AdapterError("the reference has other parameters than the model: retrain that one")
    squares = (
        (p.detach().double() - other[name].detach().to(p.device).double()).square().sum()
        for name, p in mine.items()
    )
    return math.sqrt(sum(map(float, squares)))


def retrained(
    build: Callable[[], Learns], experiences: Iterable[Experience], gone: Samples
) -> nn.Module:
    """The reference of exact unlearning: a fresh learner that never met the forgotten samples.

    Args:
        build: Makes the learner as it was before the stream.
        experiences: What it had learnt, in order.
        gone: What it was asked to forget.

    Returns:
        The model of that learner.
    """
    learner = build()
    for experience in experiences:
        kept = np.flatnonzero(~np.isin(experience.train.keys, gone.keys))
        if len(kept):
            learner.learn(replace(experience, train=experience.train.take(kept)))
    return learner.model


class RelapseWatch:
    """Follows the accuracy on the samples of each request to forget, over the rest of a stream.

    Call ``look`` before the first item (-1) and after every item; a request is followed from just
    before it is served.

    Args:
        stream: The stream with the requests.
    """

    def __init__(self, stream: LearningStream) -> None:
        self._requests: dict[int, ForgetRequest] = {
            place: item
            for place, item in enumerate(stream.items)
            if isinstance(item, ForgetRequest)
        }
        self._seen: dict[int, list[tuple[int, float]]] = {place: [] for place in self._requests}

    def look(self, model: nn.Module, item: int) -> dict[str, float]:
        """Accuracy in % on what each request followed by now asked to forget, by its name."""
        found = {}
        for place, request in self._requests.items():
            value = accuracy_pct(model, request.samples) if item >= place - 1 else None
            if value is not None:
                self._seen[place].append((item, value))
                found[request.name] = value
        return found

    def report(self) -> list[dict[str, Any]]:
        """For each request ``name``, ``item``, and ``relapse`` of its accuracies from before it."""
        return [
            {"name": request.name, "item": place, **relapse([v for _, v in self._seen[place]])}
            for place, request in self._requests.items()
            if self._seen[place]
        ]

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"seen": {place: list(map(list, rows)) for place, rows in self._seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same stream."""
        for place, rows in state["seen"].items():
            self._seen[int(place)] = [(int(item), float(value)) for item, value in rows]


def relapse(accuracies: Sequence[float]) -> dict[str, Any]:
    """What came back after forgetting.

    Args:
        accuracies: On the forgotten samples, in %: before the request, right after it, and after
            each later item.

    Returns:
        ``before_pct``, ``after_pct``, ``curve_pct`` (after each later item), ``relapse_pct`` (last
        of the curve minus after) and ``worst_relapse_pct`` (largest of it minus after); ``None``
        where it is not known yet.

    Example:
        >>> relapse([90.0, 20.0, 50.0, 40.0])["relapse_pct"]
        20.0
    """
    curve = list(accuracies[2:])
    return {
        "before_pct": accuracies[0] if accuracies else None,
        "after_pct": accuracies[1] if len(accuracies) > 1 else None,
        "curve_pct": curve,
        "relapse_pct": curve[-1] - accuracies[1] if curve else None,
        "worst_relapse_pct": max(curve) - accuracies[1] if curve else None,
    }


def _answers(model: nn.Module, samples: Labelled, batch_size: int) -> tuple[Tensor, Tensor]:
    """Probabilities ``(N, K)`` and labels ``(N,)``, on the CPU."""
    like = next(model.parameters())
    probabilities, labels = [torch.zeros(0, 1)], [torch.zeros(0, dtype=torch.int64)]
    with torch.no_grad(), untouched(model, mode="eval"):
        for first in range(0, len(samples), batch_size):
            x, y = samples.batch(np.arange(first, min(first + batch_size, len(samples))))
            probabilities.append(model(x.to(like)).softmax(1).cpu())
            labels.append(y.cpu())
    found = probabilities[1:] or probabilities
    return torch.cat(found), torch.cat(labels)


def _confidence(probabilities: Tensor, labels: Tensor) -> Tensor:
    return probabilities[torch.arange(len(labels)), labels]


def _percent(right: Tensor) -> float | None:
    return 100 * float(right.double().mean()) if len(right) else None
