"""Choice of training samples as plain functions of embeddings, scores, a budget and a generator.

All of them return places among the given rows. Inputs may be on any device; the work is done on
the CPU in float64, so that a choice does not depend on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tta.errors import AdapterError

SCORES = ("loss", "el2n", "grand", "margin", "entropy")
_MANY = 10_240
"""From so many rows on, clusters are found on mini-batches of that size, as in the reference."""


def weighted_draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Places drawn one after the other without replacement, each in proportion to its weight.

    Args:
        weights: ``(N,)``, at least 0; rows of weight 0 come after all others.
        count: How many to draw, at most ``N``.
        generator: CPU generator.

    Returns:
        Places ``(count,)`` int64, ascending.

    Raises:
        AdapterError: For a weight that is negative or not finite.
    """
    weights = weights.detach().to("cpu", torch.float64)
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise AdapterError("weights of a draw must be finite and not negative")
    uniform = torch.rand(len(weights), generator=generator, dtype=torch.float64)
    # The largest of log w + Gumbel noise is a draw in proportion to w; so is each of the next.
    gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
    return (weights.log() + gumbel).topk(count).indices.sort().values


def gradient_embedding(
    errors: Tensor, features: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Gradients of the loss with respect to the last layer's weights, or a random sketch of them.

    Args:
        errors: Softmax minus one-hot label ``(N, K)``.
        features: Input of the last layer ``(N, D)``.
        size: Length ``S`` of the sketch; 0 gives the gradients themselves.
        generator: CPU generator of the sketch.

    Returns:
        ``(N, S)``, whose inner products are in expectation those of the gradients; for ``S = 0``
        the gradients ``(N, K * D)``, the outer products of errors and features.
    """
    errors, features = errors.to("cpu", torch.float64), features.to("cpu", torch.float64)
    if not size:
        return torch.einsum("nk,nd->nkd", errors, features).flatten(1)
    # <e f', e' f''> = <e, e'> <f, f'>: a product of two sketches needs no outer product.
    left = _signs(errors.shape[1], size, generator)
    right = _signs(features.shape[1], size, generator)
    return (errors @ left) * (features @ right) / math.sqrt(size)


def sample_scores(logits: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor]:
    """How hard each sample is, by several measures; larger is harder.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` int64.
        features: Input of the last layer ``(N, D)``.

    Returns:
        ``(N,)`` each: ``loss`` (cross-entropy, nats), ``el2n`` (length of softmax minus one-hot),
        ``grand`` (that times the length of the features: the length of the last layer's gradient),
        ``margin`` (largest other probability minus that of the label), ``entropy`` (of the
        softmax, nats).
    """
    logits, features = logits.detach().to("cpu", torch.float64), features.to("cpu", torch.float64)
    labels = labels.cpu()
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    hot = F.one_hot(labels, logits.shape[1]).bool()
    el2n = (p - hot.double()).norm(dim=1)
    return {
        "loss": -log_p[hot],
        "el2n": el2n,
        "grand": el2n * features.norm(dim=1),
        "margin": p.masked_fill(hot, 0.0).amax(1) - p[hot],
        "entropy": -(p * log_p).sum(1),
    }


def cluster(embeddings: Tensor, clusters: int, seed: int) -> Tensor:
    """Pseudo-skills: k-means on the embeddings.

    Args:
        embeddings: ``(N, S)``.
        clusters: Number ``k``; fewer where there are fewer distinct rows.
        seed: Seed of the first centres.

    Returns:
        Cluster ``(N,)`` of each row, from 0, without gaps.
    """
    import sklearn.cluster as found

    rows = embeddings.detach().to("cpu", torch.float64).numpy()
    number = min(clusters, len(torch.unique(embeddings, dim=0)))
    if number <= 1:
        return torch.zeros(len(rows), dtype=torch.int64)
    if len(rows) > _MANY:
        method = found.MiniBatchKMeans(number, batch_size=_MANY, n_init=3, random_state=seed)
    else:
        method = found.KMeans(number, n_init=3, random_state=seed)
    labels = torch.from_numpy(method.fit_predict(rows)).long()
    dense: Tensor = torch.unique(labels, return_inverse=True)[1]
    return dense


def histogram_entropy(scores: Tensor, bins: int = 50, reach: float = 4.0) -> float:
    """Shannon entropy, in nats, of the histogram of standardised scores ``(N,)``.

    Scores beyond ``reach`` standard deviations count in the outer bins; scores that are all alike
    have none.
    """
    scores = scores.detach().to("cpu", torch.float64)
    spread = scores.std(correction=0)
    if not float(spread) > 0:
        return 0.0
    standard = ((scores - scores.mean()) / spread).clamp(-reach, reach)
    counts = torch.histc(standard, bins, -reach, reach)
    p = counts[counts > 0] / len(scores)
    return float(-(p * p.log()).sum())


def sharpest_score(scores: Mapping[str, Tensor]) -> str:
    """Name of the score ``(N,)`` whose histogram has the largest entropy; the first of equals."""
    return max(scores, key=lambda name: histogram_entropy(scores[name]))


def split_budget(sizes: Sequence[int], budget: int) -> list[int]:
    """Equal shares of a budget, what small clusters cannot take going to the others.

    Args:
        sizes: Rows of each cluster.
        budget: Rows to choose in all.

    Returns:
        Rows to choose of each cluster; their sum is the budget, or all rows where it is larger.

    Example:
        >>> split_budget([2, 10, 10], 12)
        [2, 5, 5]
    """
    shares = [0] * len(sizes)
    left = budget
    order = sorted(range(len(sizes)), key=lambda at: sizes[at])
    for done, at in enumerate(order):
        shares[at] = min(sizes[at], math.ceil(left / (len(sizes) - done)))
        left -= shares[at]
    return shares


def coverage_sample(
    scores: Tensor,
    budget: int,
    generator: torch.Generator,
    *,
    strata: int = 50,
    cut: float = 0.05,
) -> Tensor:
    """Rows that cover the range of a score evenly (coverage-centric selection).

    The range between the ``cut`` and ``1 - cut`` quantiles is divided into strata of equal width.
    From high scores to low ones, each gives an equal share of what is left of the budget, drawn at
    random; one that has less gives all, and the strata after it give more. What the last strata
    leave over is drawn at random from the rows not taken, those outside the range last.

    Args:
        scores: ``(N,)``.
        budget: Rows to choose; all where there are not so many.
        generator: CPU generator.
        strata: Number of strata.
        cut: Part left out at each end.

    Returns:
        Places ``(min(budget, N),)`` int64, ascending.
    """
    scores = scores.detach().to("cpu", torch.float64)
    if budget >= len(scores):
        return torch.arange(len(scores))
    order = torch.randperm(len(scores), generator=generator)
    low, high = (float(torch.quantile(scores, q)) for q in (cut, 1 - cut))
    inside = (scores >= low) & (scores <= high)
    width = (high - low) / strata
    number = ((scores - low) / width).floor() if width > 0 else torch.zeros_like(scores)
    number = number.clamp(0, strata - 1).long()
    taken: list[Tensor] = []
    left = budget
    for stratum in reversed(range(strata)):
        rows = order[(inside & (number == stratum))[order]]
        rows = rows[: math.ceil(left / (stratum + 1))]
        taken.append(rows)
        left -= len(rows)
    free = torch.ones(len(scores), dtype=torch.bool)
    free[torch.cat(taken)] = False
    rest = torch.cat([order[(free & inside)[order]], order[(free & ~inside)[order]]])
    return torch.cat([*taken, rest[:left]]).sort().values


def select(
    embeddings: Tensor,
    scores: Mapping[str, Tensor],
    budget: int,
    generator: torch.Generator,
    *,
    clusters: int = 10,
    score: str | None = None,
) -> Tensor:
    """A balanced choice: equal shares of the clusters, each covering its most telling score.

    Args:
        embeddings: ``(N, S)``.
        scores: Scores ``(N,)`` by name.
        budget: Rows to choose.
        generator: CPU generator.
        clusters: Number of pseudo-skills.
        score: The score for all clusters; ``None`` takes in each the one whose histogram has the
            largest entropy.

    Returns:
        Places ``(min(budget, N),)`` int64, ascending.
    """
    groups = cluster(embeddings, clusters, _seed(generator))
    members = [torch.nonzero(groups == g)[:, 0] for g in range(int(groups.max()) + 1)]
    chosen = []
    for rows, share in zip(members, split_budget([len(m) for m in members], budget), strict=True):
        own = {name: values.cpu()[rows] for name, values in scores.items()}
        values = own[sharpest_score(own) if score is None else score]
        chosen.append(rows[coverage_sample(values, share, generator)])
    return torch.cat(chosen).sort().values


def least_redundant(embeddings: Tensor, keep: int) -> Tensor:
    """The rows that resemble the rows before them least.

    Each row's likeness is its largest cosine similarity to an earlier row; the first has none.

    Args:
        embeddings: ``(N, S)``.
        keep: Rows to keep.

    Returns:
        Places ``(min(keep, N),)`` int64, ascending; of equals the earlier.
    """
    unit = F.normalize(embeddings.detach().to("cpu", torch.float64), dim=1)
    likeness = torch.full((len(unit),), -math.inf, dtype=torch.float64)
    for first in range(0, len(unit), 1024):
        block = unit[first : first + 1024]
        similar = block @ unit[: first + len(block)].T
        later = (
            torch.arange(similar.shape[1])[None] >= torch.arange(first, first + len(block))[:, None]
        )
        likeness[first : first + len(block)] = similar.masked_fill(later, -math.inf).amax(1)
    return likeness.sort(stable=True).indices[:keep].sort().values


def prune(
    embeddings: Tensor, cap: int, generator: torch.Generator, *, clusters: int = 10
) -> Tensor:
    """Drop near-duplicates for good: equal shares of the clusters, the least redundant of each.

    Args:
        embeddings: ``(N, S)``, older rows first.
        cap: Rows to keep.
        generator: CPU generator of the clusters.
        clusters: Number of pseudo-skills.

    Returns:
        Places ``(min(cap, N),)`` int64, ascending.
    """
    groups = cluster(embeddings, clusters, _seed(generator))
    members = [torch.nonzero(groups == g)[:, 0] for g in range(int(groups.max()) + 1)]
    shares = split_budget([len(rows) for rows in members], cap)
    kept = [
        rows[least_redundant(embeddings[rows], share)]
        for rows, share in zip(members, shares, strict=True)
    ]
    return torch.cat(kept).sort().values


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (rows, columns), generator=generator).double() * 2 - 1


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**31 - 1, (), generator=generator))
