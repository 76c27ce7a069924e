"""Orders by label: sorted, in Dirichlet chunks or slots, long-tailed, and shifting with time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streams.errors import StreamError
from streams.types import Ints

Floats = NDArray[np.float64]
ATTEMPTS = 1000


def by_label(positions: Ints, labels: Ints) -> Ints:
    """Positions by ascending label; inside a class they keep their order.

    Args:
        positions: ``(N,)``.
        labels: Labels of all images of the source.
    """
    return positions[np.argsort(labels[positions], kind="stable")]


def log_dirichlet(generator: np.random.Generator, alpha: float, shape: tuple[int, ...]) -> Floats:
    """Logarithms of Dirichlet weights over the last axis, up to a constant.

    Gamma(a) is Gamma(a + 1) times U^(1/a): in logarithms no weight underflows, however small
    ``alpha`` is.
    """
    gamma: Floats = np.log(generator.standard_gamma(alpha + 1, shape))
    # 1 - U lies in (0, 1]: its logarithm is finite.
    gamma += np.log1p(-generator.random(shape)) / alpha
    return gamma


def softmax(logs: Floats) -> Floats:
    """Weights that sum to one over the last axis."""
    weights: Floats = np.exp(logs - logs.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def cut(weights: Floats, sizes: Ints) -> Ints:
    """Parts of ``sizes (..., 1)`` cut at ``floor(cumsum(weights) * size)``, ``(..., parts)``."""
    # A sum that is 1 but for a rounding is 1: parts of no weight after it get nothing.
    inner = np.floor(np.cumsum(weights, axis=-1)[..., :-1] * sizes + 1e-9).astype(np.int64)
    inner = np.minimum(inner, sizes)
    first = np.zeros_like(inner[..., :1]) if inner.shape[-1] else np.zeros_like(sizes)
    return np.diff(np.concatenate([first, inner, np.broadcast_to(sizes, first.shape)], axis=-1))


def slot_counts(sizes: Ints, slots: int, gamma: float, generator: np.random.Generator) -> Ints:
    """Images of each class ``(K,)`` in each slot ``(K, slots)``: a Dirichlet draw a class."""
    weights = softmax(log_dirichlet(generator, gamma, (len(sizes), slots)))
    return cut(weights, sizes[:, None])


def chunk_counts(
    sizes: Ints, chunks: int, delta: float, min_chunk: int, generator: np.random.Generator
) -> Ints:
    """Images of each class ``(K,)`` in each chunk ``(K, chunks)``, balanced as NOTE does.

    A chunk that holds the mean already gets nothing more; the whole is drawn again until every
    chunk holds ``min_chunk``, or half the mean where that is less.

    Raises:
        StreamError: If no draw of many does.
    """
    total = int(sizes.sum())
    least = min(min_chunk, total // (2 * chunks))
    for _ in range(ATTEMPTS):
        logs = log_dirichlet(generator, delta, (len(sizes), chunks))
        counts = np.zeros((len(sizes), chunks), dtype=np.int64)
        held = np.zeros(chunks, dtype=np.int64)
        for k in np.flatnonzero(sizes):
            open_logs = np.where(held * chunks < total, logs[k], -np.inf)
            counts[k] = cut(softmax(open_logs), sizes[k : k + 1])
            held += counts[k]
        if held.min() >= least:
            return counts
    raise StreamError(
        f"delta={delta:g} gave no order whose {chunks} chunks hold {least} images each in "
        f"{ATTEMPTS} draws: take a larger delta, a smaller min_chunk or more images"
    )


def emit(counts: Ints, members: Ints, generator: np.random.Generator) -> Ints:
    """Slot after slot, the pieces of the classes in a random order, each piece contiguous.

    Args:
        counts: Images of each class in each slot ``(K, slots)``.
        members: Positions by class ``(N,)``, in the order in which slots take them.
        generator: Source of the order of the classes, a fresh one in each slot.
    """
    before = np.cumsum(counts.sum(axis=1)) - counts.sum(axis=1)
    firsts = (before[:, None] + np.cumsum(counts, axis=1) - counts).T
    classes = np.argsort(generator.random(firsts.shape), axis=1)
    firsts = np.take_along_axis(firsts, classes, axis=1).ravel()
    sizes = np.take_along_axis(counts.T, classes, axis=1).ravel()
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    emitted: Ints = members[np.repeat(firsts, sizes) + within]
    return emitted


def long_tail(positions: Ints, labels: Ints, imbalance: float, ranks: Ints) -> Ints:
    """The first positions of each class, as many as an exponential tail leaves it.

    The class of rank r keeps ``n_max * imbalance ** (-r / (K - 1))`` images, one at least;
    ``n_max`` is the size of the largest class.

    Args:
        positions: ``(N,)``.
        labels: Labels of all images of the source.
        imbalance: Size of the first class over that of the last, at least 1.
        ranks: Rank of each class ``(K,)``, a permutation of ``range(K)``.
    """
    of = labels[positions]
    sizes = np.bincount(of, minlength=len(ranks))
    tail = sizes.max() * imbalance ** (-ranks / max(len(ranks) - 1, 1))
    # Just below a whole number counts as that number: 10 ** (-1 / 3) rounds either way.
    kept = np.maximum(np.floor(tail + 1e-9), 1).astype(np.int64)
    sorted_at = np.argsort(of, kind="stable")
    place = np.empty(len(of), dtype=np.int64)
    place[sorted_at] = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tailed: Ints = positions[place < kept[of]]
    return tailed


def shifting(
    positions: Ints,
    labels: Ints,
    *,
    ratio: float,
    hold: int,
    classes: Ints,
    generator: np.random.Generator,
) -> Ints:
    """Draws with replacement whose label distribution moves from class to class.

    For ``hold`` draws each class of ``classes`` in turn has probability ``ratio / (ratio + K - 1)``
    and every other one ``1 / (ratio + K - 1)``; the image is uniform among those of the class.

    Args:
        positions: ``(N,)``.
        labels: Labels of all images of the source.
        ratio: Imbalance ratio, at least 1.
        hold: Consecutive draws of a class step.
        classes: The ``K`` classes that have images, in the order of their turns.
        generator: Source of the draws.
    """
    turns, total = len(classes), len(classes) * hold
    turn = np.repeat(np.arange(turns), hold)
    other = generator.random(total) >= ratio / (ratio + turns - 1)
    step_away = generator.integers(1, max(turns, 2), total)
    label = classes[np.where(other & (turns > 1), (turn + step_away) % turns, turn)]
    members = by_label(positions, labels)
    sizes = np.bincount(labels[positions], minlength=int(classes.max()) + 1)
    chosen = np.floor(generator.random(total) * sizes[label]).astype(np.int64)
    drawn: Ints = members[(np.cumsum(sizes) - sizes)[label] + chosen]
    return drawn
