"""UnMixTNS: the layer that normalises each image by its own mixture of running components."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from tta.stand_ins import StandIn, whole, widened, within


class UnMixTNS(StandIn):
    """UnMix-TNS: each image is normalised by its own mixture of ``K`` running components.

    The output uses the components as they were before this batch moved them. Layers whose input
    has no image plane (BatchNorm1d) use the running statistics.

    Args:
        source: A BatchNorm layer with running statistics.
        seed: Key of the initial components' noise.
        components: ``K``.
        temperature: Of the softmax over cosine similarities.
        spread: ``alpha``: share of the source variance that lies between the components.
        batch_size: Images a batch that the momentum is computed from; the actual number if not set.
        max_batch_size: Batch size at which the momentum is the BatchNorm's own.
    """

    kind = "unmix-tns"
    component_means: Tensor
    component_vars: Tensor

    def __init__(
        self,
        source: _BatchNorm,
        seed: str = "",
        *,
        components: int = 16,
        temperature: float = 0.07,
        spread: float = 0.5,
        batch_size: int | None = None,
        max_batch_size: int = 64,
    ) -> None:
        super().__init__(source)
        self.components = whole("components", components)
        self.temperature = within("temperature", temperature, 1e-6)
        self.spread = within("spread", spread, 0, 1)
        self.batch_size = None if batch_size is None else whole("batch_size", batch_size)
        self.max_batch_size = whole("max_batch_size", max_batch_size)
        mean, var, count = widened(self.running_mean), widened(self.running_var), self.components
        means, variances = mean.expand(count, -1).clone(), var.expand(count, -1).clone()
        if count > 1:
            generator = torch.Generator().manual_seed(_seed(seed))
            shape, wide = (count, self.num_features), torch.float64
            noise = torch.randn(shape, generator=generator, dtype=wide).to(mean)
            means += (self.spread * count / (count - 1)) ** 0.5 * var.sqrt() * noise
            variances *= 1 - self.spread
        self.register_buffer("component_means", means)
        self.register_buffer("component_vars", variances)

    def normalize(self, x: Tensor) -> Tensor:
        """``(B, C, ...)``."""
        if x.ndim < 4:
            return self.by_running(x)
        return self.by_moments(x, self._mixed)

    def _mixed(self, own_var: Tensor, own_mean: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            share = self.shares(own_mean)
        mean, var = self.mixture(share, own_mean, own_var)
        if self.moving:
            self.move(share, own_mean.detach(), own_var.detach())
        return mean, var

    def shares(self, own_mean: Tensor) -> Tensor:
        """Softmax ``(B, K)`` of the cosines between images ``(B, C)`` and components."""
        images, components = F.normalize(own_mean), F.normalize(self.component_means.to(own_mean))
        return torch.softmax(images @ components.T / self.temperature, dim=1)

    def mixture(self, share: Tensor, own_mean: Tensor, own_var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(B, C)`` of each image's mixture.

        The mean of ``M_bk = (1 - p_bk) mu_k + p_bk a_b`` over ``k``, and the mean of the likewise
        mixed variances plus the variance of ``M_bk`` over ``k``. Multiplied out, so that no tensor
        ``(B, K, C)`` is ever made; taken about the source mean, which saves digits in float32.
        """
        count = self.components
        with torch.no_grad():
            mu = self.component_means.to(own_mean) - self.running_mean
            v = self.component_vars.to(own_mean)
            rest = 1 - share
            mu_part, var_part = rest @ mu, rest @ v
            squares, cross = rest.square() @ mu.square(), (rest * share) @ mu
            own_square = share.square().sum(1, keepdim=True)
        a = own_mean - self.running_mean
        mean = (mu_part + a) / count
        square = (squares + 2 * cross * a + own_square * a.square()) / count
        var = (var_part + own_var) / count + square - mean.square()
        return mean + self.running_mean, var

    @torch.no_grad()
    def move(self, share: Tensor, own_mean: Tensor, own_var: Tensor) -> None:
        """Each component towards the images, by their shares."""
        power = (self.batch_size or len(share)) / self.max_batch_size
        rate = (1 - (1 - self.momentum) ** power) / len(share)
        total = share.sum(0)[:, None]
        for state, own in ((self.component_means, own_mean), (self.component_vars, own_var)):
            state += rate * (share.T @ own - total * state)


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
