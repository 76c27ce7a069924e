"""CMA-ES: minimise a function of many numbers by sampling, without gradients.

Hansen: The CMA evolution strategy: a tutorial, 2016, arXiv:1604.00772 (equations and table 1
below); solutions from elsewhere as in Hansen: Injecting external solutions into CMA-ES, 2011,
arXiv:1110.4181.

The state is a plain dict of numbers and tensors, so that it can be saved, loaded and continued bit
for bit; every draw comes from the generator given. All arithmetic is float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rates:
    """Strategy parameters of table 1 for ``dim`` numbers and ``popsize`` samples a generation."""

    parents: int
    weights: Tensor  # (popsize,) by rank: positive for the parents (sum 1), negative for the worst
    mass: float  # mu_eff
    sigma_path: float  # c_sigma
    damping: float  # d_sigma
    path: float  # c_c
    rank_one: float  # c_1
    rank_mu: float  # c_mu


def rates(dim: int, popsize: int) -> Rates:
    """Table 1 of the tutorial; ``popsize`` at least 4."""
    parents = popsize // 2
    raw = math.log((popsize + 1) / 2) - torch.arange(1, popsize + 1, dtype=torch.float64).log()
    best, worst = raw[:parents], raw[parents:]
    mass = float(best.sum() ** 2 / best.square().sum())
    worst_mass = float(worst.sum() ** 2 / worst.square().sum())
    rank_one = 2 / ((dim + 1.3) ** 2 + mass)
    rank_mu = 2 * (0.25 + mass + 1 / mass - 2) / ((dim + 2) ** 2 + mass)
    rank_mu = min(1 - rank_one, rank_mu)
    negative = min(
        1 + rank_one / rank_mu,
        1 + 2 * worst_mass / (mass + 2),
        (1 - rank_one - rank_mu) / (dim * rank_mu),
    )
    sigma_path = (mass + 2) / (dim + mass + 5)
    return Rates(
        parents=parents,
        weights=torch.cat([best / best.sum(), negative * worst / worst.sum().abs()]),
        mass=mass,
        sigma_path=sigma_path,
        damping=1 + 2 * max(0.0, math.sqrt((mass - 1) / (dim + 1)) - 1) + sigma_path,
        path=(4 + mass / dim) / (dim + 4 + 2 * mass / dim),
        rank_one=rank_one,
        rank_mu=rank_mu,
    )


def start(dim: int, sigma: float) -> dict[str, Any]:
    """The state before the first generation: mean 0, covariance ``sigma ** 2 * I``.

    ``covariance`` and its eigenvectors ``basis`` with root eigenvalues ``scales`` stand for the
    identity while they are ``None``.
    """
    return {
        "mean": torch.zeros(dim, dtype=torch.float64),
        "sigma": sigma,
        "sigma_path": torch.zeros(dim, dtype=torch.float64),
        "path": torch.zeros(dim, dtype=torch.float64),
        "covariance": None,
        "basis": None,
        "scales": None,
        "generation": 0,
        "decomposed": 0,
    }


def ask(state: dict[str, Any], count: int, generator: torch.Generator) -> Tensor:
    """Samples ``(count, dim)`` of the current distribution, float64 on the CPU; eq. 38 to 40."""
    mean = _exact(state["mean"])
    steps = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    if state["basis"] is not None:
        steps = (steps * _exact(state["scales"])) @ _exact(state["basis"]).T
    return mean + float(state["sigma"]) * steps


def tell(state: dict[str, Any], candidates: Tensor, losses: Tensor, popsize: int) -> None:
    """One generation: move the mean, the step size and the covariance, in ``state``.

    Args:
        state: As of ``start``.
        candidates: ``(N, dim)``; the first ``popsize`` are those of ``ask``, what follows comes
            from elsewhere and is pulled in where it lies farther out than a sample would.
        losses: ``(N,)``, finite; the lowest is best.
        popsize: Samples of a generation, at most ``N``.
    """
    mean, dim = _exact(state["mean"]), len(state["mean"])
    rate = rates(dim, popsize)
    sigma = float(state["sigma"])
    steps = (_exact(candidates) - mean) / sigma
    limit = math.sqrt(dim) + 2 * dim / (dim + 2)
    lengths = _whiten(state, steps).norm(dim=1)
    shrink = (limit / lengths.clamp(min=limit)).index_fill(0, torch.arange(popsize), 1.0)
    steps, lengths = steps * shrink[:, None], lengths * shrink
    order = _exact(losses).argsort(stable=True)
    steps, lengths = steps[order], lengths[order]
    # With more candidates than samples, those in the middle have no weight.
    weights = torch.zeros(len(steps), dtype=torch.float64)
    weights[: rate.parents] = rate.weights[: rate.parents]
    weights[len(steps) - popsize + rate.parents :] = rate.weights[rate.parents :]

    move = weights[: rate.parents] @ steps[: rate.parents]  # eq. 41
    state["mean"] = mean + sigma * move
    gain = math.sqrt(rate.sigma_path * (2 - rate.sigma_path) * rate.mass)
    sigma_path = (1 - rate.sigma_path) * _exact(state["sigma_path"])
    sigma_path = sigma_path + gain * _whiten(state, move[None])[0]  # eq. 43
    state["sigma_path"] = sigma_path
    expected = math.sqrt(dim) * (1 - 1 / (4 * dim) + 1 / (21 * dim**2))
    ratio = float(sigma_path.norm()) / expected
    growth = rate.sigma_path / rate.damping * (ratio - 1)  # eq. 44
    state["sigma"] = sigma * math.exp(min(1.0, growth))

    generation = int(state["generation"]) + 1
    known = 1 - (1 - rate.sigma_path) ** (2 * generation)
    calm = ratio / math.sqrt(known) < 1.4 + 2 / (dim + 1)
    path = (1 - rate.path) * _exact(state["path"])
    if calm:
        path = path + math.sqrt(rate.path * (2 - rate.path) * rate.mass) * move  # eq. 45
    state["path"] = path
    # A long bad step would make the covariance negative: bad steps count with one length, eq. 46.
    scaled = torch.where(weights < 0, weights * dim / lengths.square().clamp(min=1e-12), weights)
    kept = 1 - rate.rank_one - rate.rank_mu * float(weights.sum())
    kept += 0.0 if calm else rate.rank_one * rate.path * (2 - rate.path)
    old = state["covariance"]
    covariance = torch.eye(dim, dtype=torch.float64) if old is None else _exact(old)
    covariance = torch.addmm(  # eq. 47
        covariance, steps.T * scaled, steps, beta=kept, alpha=rate.rank_mu
    )
    state["covariance"] = covariance.addr_(path, path, alpha=rate.rank_one)
    state["generation"] = generation
    # The decomposition is the costly part: as rare as the covariance is slow.
    gap = 1 / (10 * dim * (rate.rank_one + rate.rank_mu))
    if generation - int(state["decomposed"]) >= gap:
        _decompose(state)


def _decompose(state: dict[str, Any]) -> None:
    covariance = state["covariance"]
    values, basis = torch.linalg.eigh((covariance + covariance.T) / 2)
    state["scales"] = values.clamp(min=1e-14).sqrt()
    state["basis"] = basis
    state["decomposed"] = state["generation"]


def _whiten(state: dict[str, Any], steps: Tensor) -> Tensor:
    """Rows times ``C ** -1/2``."""
    if state["basis"] is None:
        return steps
    basis = _exact(state["basis"])
    return (steps @ basis / _exact(state["scales"])) @ basis.T


def _exact(tensor: Tensor) -> Tensor:
    # Moving an adapter moves its state; the search stays where its draws are reproducible.
    return tensor.to("cpu", torch.float64)
