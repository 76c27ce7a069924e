"""PETAL: a mean teacher with a Gaussian prior from the source; unimportant weights are put back.

Brahma, Rai: A probabilistic framework for lifelong test-time adaptation, 2023, arXiv:2212.09713.
Reference code: dhanajitb/petal @ ae61118.

The defaults are the official CIFAR-10-C form with restoration by Fisher values (PETAL FIM);
``restore="random"`` is the other variant (SRes). CIFAR-100-C: ``confidence_threshold=0.72``.
ImageNet-C: ``loss="symmetric", optimizer="sgd", lr=0.01, nesterov=True, confidence_threshold=0.1,
fisher_quantile=0.003, restore_probability=0.001, prior_weight=1e-11`` (ImageNet-3DCC: 1e-10).

Deviations:
- ``fit_source`` with labelled batches, or ``set_posterior`` with a mean and a variance made
  elsewhere, gives the source posterior. Without either the mean is the source model and the
  deviation of a weight ``w`` is ``0.01 + 0.1 |w|`` (``fallback_deviation``); the reference has no
  such case.
- ``fit_source`` takes its data as they come, ``swag_interval`` batches a snapshot, with the rates
  of the CIFAR script. Five epochs of 250 batches are that script; its ImageNet script never steps
  and is not followed.
- Variances are accumulated around the mean and are never negative. The reference subtracts the
  squared mean in float32, and divides by what comes out.
- The Fisher values are squared gradients of the total loss, the prior included, as in the code; the
  paper writes the loss alone.
- The prior runs over the trained weights. The others stay at their mean and add nothing.
- A weight that the loss does not reach has no Fisher value and is not restored; the reference
  raises.
- If an update is refused (a gradient is not finite), nothing is restored by Fisher values.
- As in CoTTA (see there): views where they are used alone, own generators, dropout off, several
  views in one forward, images need not be square, running statistics where a layer sees one value
  per channel, ``predict`` answers with the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta import augment, ema, mean_teacher, norms, optim, posterior
from tta.adapter import Adapter, Needs
from tta.config import param
from tta.errors import AdapterError
from tta.factory import adapters


@adapters.register()
class PETAL(Adapter):
    """CoTTA's teacher, a quadratic prior, and restoration of weights of low Fisher value."""

    # Labels only if the posterior is fitted: the method runs without.
    needs = Needs(source_labels=True)
    answers_with_views = True
    check_options = (
        {"num_views": 3, "fisher_quantile": 0.1},
        {"restore": "random", "confidence_threshold": 0.0, "loss": "symmetric"},
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config(mean_teacher.TeacherConfig):
        """Defaults of the official CIFAR-10-C configuration."""

        prior_weight: float = param(1e-9, "factor of the summed prior; cfgs, SPW", ge=0)
        restore: Literal["fisher", "random"] = param(
            "fisher", "fisher: data-driven restoration, section 4.3; random: as CoTTA"
        )
        fisher_quantile: float = param(
            0.03, "share of the weights that 'fisher' puts back; ImageNet .003", ge=0, le=1
        )
        restore_probability: float = param(
            0.01, "of each weight a step, in 'random'; ImageNet .001", ge=0, le=1
        )
        fallback_deviation: tuple[float, float] = param(
            (0.01, 0.1), "deviation without a posterior: floor, and share of |w|", ge=0
        )
        swag_interval: int = param(250, "batches a snapshot in fit_source; an epoch", ge=1)
        swag_lr: tuple[float, float] = param(
            (8e-4, 0.01), "rates of the first and of the fourth snapshot; CIFAR script", gt=0
        )
        swag_momentum: float = param(0.9, "momentum in fit_source", ge=0, lt=1)
        swag_weight_decay: float = param(5e-4, "weight decay in fit_source", ge=0)

    config: Config
    optimizer: torch.optim.Optimizer
    teacher: dict[str, Tensor] | None
    variance: dict[str, Tensor] | None

    def setup(self) -> None:
        """All weights and biases are trained; batch statistics in every BatchNorm."""
        self._params = mean_teacher.trainable(self.model, self.config.parameters)
        norms.use_batch_statistics(self.model)
        self.add_optimizer(self.config, list(self._params.values()))
        self.add_state("teacher", None)  # None: the source model, so a reset keeps no copy
        self.add_state("variance", None)  # None: see fallback_deviation

    def adapt(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to the teacher's logits ``(B, K)``, from before the update."""
        for step in range(self.config.steps):
            logits = self._learn(x, step)
        return logits

    def infer(self, x: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to the teacher's logits ``(B, K)``."""
        return mean_teacher.run(self.model, self.teacher or {}, x)

    def augment(self, x: Tensor, purpose: str) -> Tensor:
        """One augmented view of a batch ``(B, C, H, W)``, same shape, in ``[0, 1]``."""
        return augment.cotta(x, self.generator(purpose))

    def fit(self, batches: Iterable[Any]) -> None:
        """Train on with SGD and take mean and variance of the weights on the way (SWAG).

        The first ``swag_interval`` batches pass before the first interval that ends in a snapshot.
        BatchNorm keeps its running statistics meanwhile.

        Args:
            batches: Pairs of images ``(B, C, H, W)`` and labels ``(B,)``.

        Raises:
            AdapterError: With fewer than three intervals, that is two snapshots.
        """
        config, params = self.config, list(self._params.values())
        slow, fast = config.swag_lr
        rule = torch.optim.SGD(
            params,
            lr=slow,
            momentum=config.swag_momentum,
            weight_decay=config.swag_weight_decay,
        )
        moments = posterior.Moments(params)
        seen = 0
        layers = [layer.module for layer in norms.find(self.model) if layer.kind == "bn"]
        hooks = [layer.register_forward_pre_hook(_use_running_statistics) for layer in layers]
        try:
            for seen, (x, y) in enumerate(batches, 1):
                interval = (seen - 1) // config.swag_interval
                share = min(max(interval - 1, 0) / 3, 1)
                rule.param_groups[0]["lr"] = slow + (fast - slow) * share
                optim.step_if_finite(rule, F.cross_entropy(self.logits(x), y))
                if seen % config.swag_interval == 0 and interval > 0:
                    moments.add(params)
        finally:
            for hook in hooks:
                hook.remove()
        if moments.count < 2:
            raise AdapterError(
                f"{self.name} needs two snapshots of the weights for a variance: {seen} batches "
                f"with swag_interval={config.swag_interval} give {moments.count}; pass at least "
                f"{3 * config.swag_interval} batches or set a smaller swag_interval"
            )
        self._take(
            dict(zip(self._params, moments.mean, strict=True)),
            dict(zip(self._params, moments.variance(), strict=True)),
        )

    def set_posterior(self, mean: Mapping[str, Tensor], variance: Mapping[str, Tensor]) -> None:
        """Take a source posterior made elsewhere; the adapter starts again from its mean.

        Args:
            mean: Weights by their names in the model, for all that are trained; others are ignored.
            variance: Variances by the same names; what is below zero counts as zero.

        Raises:
            AdapterError: For a missing name or another shape.
        """
        for kind, given in (("mean", mean), ("variance", variance)):
            for name, parameter in self._params.items():
                if name not in given or given[name].shape != parameter.shape:
                    found = tuple(given[name].shape) if name in given else "nothing"
                    raise AdapterError(
                        f"the {kind} of {name!r} must be of shape {tuple(parameter.shape)}, "
                        f"found {found}"
                    )
        self.reset()
        self._take(mean, {name: variance[name].clamp_min(0) for name in self._params})
        self.source_fitted = True
        self._keep_initial()

    def _take(self, mean: Mapping[str, Tensor], variance: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._params.items():
                parameter.copy_(mean[name])
        self.variance = {name: variance[name].detach().to(p) for name, p in self._params.items()}

    def _learn(self, x: Tensor, step: int) -> Tensor:
        config, params = self.config, self._params
        if self.teacher is None:
            self.teacher = {name: p.detach().clone() for name, p in params.items()}
        source = mean_teacher.like(params, self._initial["tensors"])
        target = mean_teacher.target(
            self.model,
            self.teacher,
            source,
            x,
            lambda view: self.augment(x, f"view/{step}/{view}"),
            config,
        )
        self.count_forwards(target.forwards)

        loss = mean_teacher.consistency(target.logits, self.logits(x), config)
        unimportant = self._update(loss, source, images=len(x))
        self.record(
            selected_fraction=1.0,
            source_confidence=target.confidence,
            augmented=float(target.augmented),
        )
        student = list(params.values())
        ema.update(list(self.teacher.values()), student, config.teacher_decay)
        # After the average: the teacher never sees the weights restored in this step.
        if config.restore == "random":
            draws = self.generator(f"restore/{step}")
            ema.restore(student, list(source.values()), config.restore_probability, draws)
        elif unimportant is not None:
            names, mask = unimportant
            ema.restore_where([params[n] for n in names], [source[n] for n in names], mask)
        return target.logits

    def _update(
        self, loss: Tensor, source: mean_teacher.Weights, images: int
    ) -> tuple[list[str], Tensor] | None:
        """A step on loss and prior; names, and which of their weights had low Fisher values."""
        config, found = self.config, None
        self.record(loss=loss)

        def before(*_: object) -> None:  # the gradients are there, finite, and not used yet
            nonlocal found
            names = [name for name, p in self._params.items() if p.grad is not None]
            params = [self._params[name] for name in names]
            grads = [p.grad for p in params if p.grad is not None]
            if config.prior_weight:
                means = [source[name] for name in names]
                prior = posterior.add_prior(
                    params, grads, means, self._variances(names, means), config.prior_weight
                )
                self.record(loss=loss + config.prior_weight * prior, prior=prior)
            if config.restore == "fisher":
                found = names, posterior.below_quantile(grads, config.fisher_quantile)

        hook = self.optimizer.register_step_pre_hook(before)
        try:
            self.update(loss, images=images)
        finally:
            hook.remove()
        return found

    def _variances(self, names: list[str], means: list[Tensor]) -> list[Tensor]:
        if self.variance is not None:
            return [self.variance[name] for name in names]
        floor, share = self.config.fallback_deviation
        deviations = torch._foreach_abs(means)
        torch._foreach_mul_(deviations, share)
        torch._foreach_add_(deviations, floor)
        return list(torch._foreach_mul(deviations, deviations))


def _use_running_statistics(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook that goes over the batch statistics of adaptation."""
    module.training = False
