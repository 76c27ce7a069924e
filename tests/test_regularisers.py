"""Refresh, and the strategies that hold weights, features or outputs: against values by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual import Learner, LearnerConfig, Plugin, create_plugins
from continual.anchors import chosen_names, padded, squared_distance
from continual.fisher import diagonal_fisher
from continual.strategies.ewc import Ewc
from continual.strategies.feat_kd import FeatKd
from continual.strategies.l2_anchor import L2Anchor
from continual.strategies.lwf import distillation
from continual.strategies.pred_kd import PredKd
from continual.strategies.qkv import projections
from continual.strategies.refresh import Refresh, paper_step, released_step
from streams.clean import in_memory
from streams.learning_types import Experience, ForgetRequest, Samples
from streams.single import CleanSource
from tta.errors import AdapterError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(size: int, classes: int = 2, side: int = 4) -> Samples:
    labels = np.arange(size) % classes
    images = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    clean = in_memory(images, labels, name="noise", num_classes=classes)
    return Samples(
        source=CleanSource(clean=clean),
        positions=np.arange(size),
        labels=labels,
        tasks=np.zeros(size, dtype=np.int64),
    )


def net(classes: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes)
        )


def linear(classes: int = 2, side: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))


def learner(plugins: Any, classes: int = 2, **config: Any) -> Learner:
    made = create_plugins(plugins) if isinstance(plugins, str) else plugins
    return Learner(
        net(classes), classes, LearnerConfig(**{"lr": 0.05, "batch_size": 8, **config}), made
    )


def experience(data: Samples) -> Experience:
    return Experience(name="e", train=data, task=0)


def forget(data: Samples) -> ForgetRequest:
    return ForgetRequest(name="f", kind="samples", samples=data)


class Weights(nn.Module):
    """Two weights before a classifier."""

    def __init__(self, w: tuple[float, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))
        self.head = nn.Linear(2, 2)


# Refresh ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fisher", "second"), [(0.0, 4.00005), (1000.0, 4.000025)])
def test_released_step_is_the_cards_vector(fisher: float, second: float):
    w = {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    g = {"w": torch.tensor([0.0, 2.0], dtype=torch.float64)}
    f = {"w": torch.tensor([0.0, fisher], dtype=torch.float64)} if fisher else {}
    released_step(w, g, f, None, Refresh.Config(sigma=0.0))
    assert w["w"].tolist() == pytest.approx([3.0, second], rel=1e-12)


def test_released_step_has_noise_and_skips_tensors_without_gradient():
    w = {"a": torch.zeros(2), "b": torch.ones(2), "c": torch.ones(1)}
    g = {"a": torch.tensor([0.0, 1.0]), "b": torch.full((2,), 1e-14), "c": torch.tensor([-3.0])}
    noise = [torch.tensor([1.0, -2.0]), torch.ones(2), torch.zeros(1)]
    released_step(w, g, {}, noise, Refresh.Config(delta=0.5, sigma=0.1))
    assert w["a"].tolist() == pytest.approx([0.05, -0.1])  # no norm: noise alone
    assert w["b"].tolist() == [1.0, 1.0]
    assert w["c"].tolist() == pytest.approx([0.5])


def test_paper_step_is_its_formula():
    w, g = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([1.0, 2.0])}
    config = Refresh.Config(form="paper", gamma=0.5, damping=1.0)
    paper_step(w, g, {"w": torch.tensor([0.0, 3.0])}, [torch.tensor([1.0, -1.0])], config)
    # F + 1 = (1, 4): gradient .5, .25; noise sqrt(1) and -sqrt(1/4).
    assert w["w"].tolist() == pytest.approx([3 + 0.5 + 1.0, 4 + 0.25 - 0.5])


def test_refresh_raises_the_loss_and_touches_nothing_else():
    seen = []

    class Watched(Refresh):
        name = "refresh"

        def begin_step(self, host: Any) -> None:
            def loss() -> float:
                with torch.no_grad():
                    return float(F.cross_entropy(host.model(host.x), host.y))

            buffers = [b.clone() for b in host.model.buffers()]
            grads = [p.grad for p in host.model.parameters()]
            weights = [p.detach().clone() for p in host.model.parameters()]
            super().begin_step(host)
            assert all(map(torch.equal, buffers, host.model.buffers()))
            assert all(p.grad is g for p, g in zip(host.model.parameters(), grads, strict=True))
            moved = any(map(lambda p, w: not torch.equal(p, w), host.model.parameters(), weights))
            after = loss()
            for p, w in zip(host.model.parameters(), weights, strict=True):
                p.data.copy_(w)
            seen.append((moved, after > loss() if moved else None))

    counted = []
    config = Refresh.Config(delta=1e-2, sigma=0.0, every=2, steps=2)
    made = learner([Watched(config)])
    made.learn(experience(samples(32)), lambda step: counted.append(step.forwards))
    assert seen == [(True, True), (False, None), (True, True), (False, None)]
    assert counted == [24, 8, 24, 8]


def test_refresh_unlearns_the_new_rows_alone():
    """With a buffer beside it, the perturbation is that of the new rows."""
    made = learner("replay+refresh")
    refresh = made.plugins[1]
    rows = []
    forward = made.model.forward

    def counted(x: Tensor) -> Tensor:
        rows.append(len(x))
        return forward(x)

    made.model.forward = counted
    made.learn(experience(samples(16)))
    assert refresh.name == "refresh"
    assert rows[:4] == [8, 8, 8, 16]  # unlearn, learn, unlearn, learn with the buffer


def test_refresh_keeps_a_share_of_the_old_fisher():
    data = samples(16)
    first, second = data.take(np.arange(8)), data.take(np.arange(8, 16))
    made = learner([Refresh(Refresh.Config(tau=0.25))])
    made.learn(experience(first))
    old = dict(made.plugins[0].fisher)
    made.learn(experience(second))
    new = diagonal_fisher(made.model, second, weight_by_p=True, generator=seeded())
    for name, value in made.plugins[0].fisher.items():
        torch.testing.assert_close(value, new[name] + 0.25 * old[name])
    made.forget(forget(second.take(np.arange(3))))
    rest = diagonal_fisher(
        made.model, second.take(np.arange(3, 8)), weight_by_p=True, generator=seeded()
    )
    for name, value in made.plugins[0].fisher.items():
        torch.testing.assert_close(value, rest[name])


# Fisher -----------------------------------------------------------------------------------------


def by_hand(model: nn.Module, data: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels ``(N, 3)``, labels ``(N,)`` and probabilities ``(N, K)`` of a linear classifier."""
    x, y = data.batch(np.arange(len(data)))
    return x.flatten(1), y, model(x).softmax(1).detach()


@pytest.mark.parametrize("labels", ["true", "predicted", "all"])
def test_fisher_of_a_linear_classifier_in_closed_form(labels: Any):
    """d log p(y|x) / dW = (onehot(y) - p) x^T, so F = mean of (onehot - p)^2 (x^2)^T."""
    model, data = linear(3), samples(10, classes=3, side=1)
    x, y, p = by_hand(model, data)
    found = diagonal_fisher(model, data, labels=labels, batch_size=4, generator=seeded())
    if labels == "all":
        errors = p * (1 - p)  # E_y (onehot - p)^2
    else:
        errors = (F.one_hot(y if labels == "true" else p.argmax(1), 3) - p) ** 2
    torch.testing.assert_close(found["1.weight"], errors.T @ x**2 / 10)
    torch.testing.assert_close(found["1.bias"], errors.mean(0))


def test_fisher_weights_and_draws():
    model, data = linear(2), samples(8, side=1)
    x, y, p = by_hand(model, data)
    errors = (F.one_hot(y, 2) - p) ** 2 * p.gather(1, y[:, None])
    found = diagonal_fisher(model, data, weight_by_p=True, generator=seeded())
    torch.testing.assert_close(found["1.weight"], errors.T @ x**2 / 8)
    # A draw of the label is right in the mean.
    drawn = [
        diagonal_fisher(model, data, labels="sampled", generator=seeded(n))["1.bias"]
        for n in range(150)
    ]
    expected = (p * (1 - p)).mean(0)
    assert torch.allclose(torch.stack(drawn).mean(0), expected, rtol=0.1)
    few = diagonal_fisher(model, data, max_samples=3, generator=seeded(1))
    chosen = np.sort(torch.randperm(8, generator=seeded(1))[:3].numpy())
    same = diagonal_fisher(model, data.take(chosen), generator=seeded())
    assert torch.equal(few["1.weight"], same["1.weight"])


def test_fisher_of_batches_squares_the_mean():
    model, data = linear(2), samples(6, side=1)
    x, y, p = by_hand(model, data)
    each = (p - F.one_hot(y, 2))[:, :, None] * x[:, None]
    expected = (each[:4].mean(0) ** 2 * 4 + each[4:].mean(0) ** 2 * 2) / 6
    found = diagonal_fisher(model, data, per="batch", batch_size=4, generator=seeded())
    torch.testing.assert_close(found["1.weight"], expected)
    with pytest.raises(AdapterError, match="per='sample'"):
        diagonal_fisher(model, data, per="batch", labels="all", generator=seeded())
    with pytest.raises(AdapterError, match="at least one sample"):
        diagonal_fisher(model, data.take(np.arange(0)), generator=seeded())


def test_fisher_one_by_one_is_fisher_at_once():
    class Odd(nn.Module):
        """An operation that vmap refuses: a decision on a value."""

        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.detach().sum()) > -1e9 else -x

    plain, data = net(), samples(6)
    odd = nn.Sequential(plain, Odd())
    before = {n: v.clone() for n, v in plain.state_dict().items()}
    modes = [m.training for m in plain.modules()]
    one = diagonal_fisher(plain, data, generator=seeded())
    two = diagonal_fisher(odd, data, generator=seeded())
    for name, value in one.items():
        torch.testing.assert_close(two[f"0.{name}"], value)
    diagonal_fisher(plain, data, mode="train", generator=seeded())
    assert all(torch.equal(v, before[n]) for n, v in plain.state_dict().items())
    assert [m.training for m in plain.modules()] == modes
    assert all(p.grad is None for p in plain.parameters())
    assert not any(value.requires_grad for value in one.values())


# L2, EWC ----------------------------------------------------------------------------------------


def test_l2_and_ewc_are_the_cards_vectors():
    model = Weights((1.0, 2.0))
    host: Any = SimpleNamespace(model=model)
    l2 = L2Anchor()
    l2.setup(SimpleNamespace(model=Weights((0.0, 0.0))))
    assert list(l2.anchor) == ["w"]
    assert l2.add_loss(host).item() == pytest.approx(0.25)
    ewc = Ewc()
    ewc.anchor, ewc.fisher = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    penalty = ewc.add_loss(host)
    assert penalty.item() == pytest.approx(25)
    penalty.backward()
    assert model.w.grad.tolist() == pytest.approx([10.0, 20.0])  # mu F (w - w')
    whole = Ewc(Ewc.Config(half=False))
    whole.anchor, whole.fisher = ewc.anchor, ewc.fisher
    assert whole.add_loss(host).item() == pytest.approx(50)


def test_names_leave_out_the_head_and_follow_the_pattern():
    model = net()
    assert chosen_names(model, head=False) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert chosen_names(model, head=True, pattern=r"^[03]\.weight$") == ["0.weight", "3.weight"]
    with pytest.raises(AdapterError, match="matches none"):
        chosen_names(model, head=False, pattern="conv")
    with pytest.raises(AdapterError, match="no regular expression"):
        chosen_names(model, head=False, pattern="(")
    with pytest.raises(AdapterError, match="outside the classifier"):
        chosen_names(nn.Linear(2, 2), head=False)


def test_a_grown_parameter_is_held_where_it_was():
    model = nn.Linear(2, 3)
    anchors = {"weight": torch.zeros(2, 2)}
    expected = model.weight[:2].square().sum()
    torch.testing.assert_close(squared_distance(model, anchors), expected)
    assert padded(torch.ones(2), torch.zeros(3)).tolist() == [1, 1, 0]


def test_l2_holds_the_first_weights_from_the_start():
    data = samples(16)
    ends = {}
    for from_start in (True, False):
        made = learner([L2Anchor(L2Anchor.Config(lam=5.0, from_start=from_start))], epochs=3)
        start = made.model[0].weight.detach().clone()
        made.learn(experience(data))
        ends[from_start] = (made.model[0].weight - start).norm().item()
        assert torch.equal(made.plugins[0].anchor["0.weight"], made.model[0].weight)
    assert ends[True] < 0.5 * ends[False]


def test_ewc_adds_fishers_up():
    data = samples(16)
    first, second = data.take(np.arange(8)), data.take(np.arange(8, 16))
    for options, keep in (({}, 1.0), ({"accumulate": "online", "gamma": 0.5}, 0.5)):
        made = learner([Ewc(Ewc.Config(**options))])
        plugin = made.plugins[0]
        made.learn(experience(first))
        old = dict(plugin.fisher)
        assert "3.weight" not in old
        made.learn(experience(second))
        new = diagonal_fisher(made.model, second, generator=seeded())
        for name, value in plugin.fisher.items():
            torch.testing.assert_close(value, new[name] + keep * old[name])
            assert torch.equal(plugin.anchor[name], made.model.state_dict()[name])


def test_ewc_is_taken_anew_after_a_request_to_forget():
    data = samples(16)
    first, second = data.take(np.arange(8)), data.take(np.arange(8, 16))
    made = learner("ewc")
    made.learn(experience(first))
    made.learn(experience(second))
    with torch.no_grad():
        made.model[0].weight.add_(1.0)  # as an unlearner would
    made.forget(forget(first.take(np.arange(6))))
    parts = (first.take(np.arange(6, 8)), second)
    rest = [diagonal_fisher(made.model, part, generator=seeded()) for part in parts]
    for name, value in made.plugins[0].fisher.items():
        torch.testing.assert_close(value, rest[0][name] + rest[1][name])
    assert made.plugins[0].add_loss(made).item() == 0


# Distillation -----------------------------------------------------------------------------------


def test_lwf_distillation_by_hand():
    target = torch.tensor([[0.0, 2 * math.log(3)]])
    # T = 2: (1/4, 3/4) against (1/2, 1/2).
    value = distillation(torch.zeros(1, 2), target, 2.0)
    assert float(value) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(distillation(target, target, 2.0)) == pytest.approx(0)


def test_lwf_holds_the_old_classes_alone():
    data = samples(32, classes=4)
    old, new = (data.take(np.flatnonzero(data.labels // 2 == half)) for half in (0, 1))
    made = learner("lwf", classes=4)
    losses: list[float] = []
    made.learn(experience(old), lambda step: losses.append(step.loss))
    teacher = made.plugins[0].teacher.model(made)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    kept = {n: v.clone() for n, v in teacher.state_dict().items()}

    def check(step: Any) -> None:
        with torch.no_grad():
            target = teacher(step.x)
        term = distillation(step.logits[:, :2], target[:, :2], 2.0)
        expected = F.cross_entropy(step.logits, step.y) + term
        assert step.loss == pytest.approx(float(expected), rel=1e-5)
        assert step.forwards == 16

    made.learn(experience(new), check)
    assert all(torch.equal(v, kept[n]) for n, v in teacher.state_dict().items())
    made.learn(experience(new))  # nothing old that the experience does not bring: 0, 1 again
    assert made.plugins[0].classes.seen("cpu").tolist() == [0, 1, 2, 3]


def test_pred_kd_is_the_cards_vector():
    """One old class, teacher logit 0: target .5, and the least loss of that column is ln 2."""
    plugin = PredKd(PredKd.Config(ce_loss_scale=1.0))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    for p in teacher.parameters():
        nn.init.zeros_(p)
    host: Any = SimpleNamespace(
        model=teacher,
        device="cpu",
        data=SimpleNamespace(labels=np.array([0])),
        count=lambda forwards: None,
        x=torch.zeros(1, 1, 1, 1),
        y=torch.tensor([1]),
    )
    plugin.begin_experience(host)
    plugin.end_experience(host)
    host.data = SimpleNamespace(labels=np.array([1]))
    plugin.begin_experience(host)
    for logit in (-1.0, 0.0, 1.0):
        host.logits = torch.tensor([[logit, 2.0]])
        column = math.log(1 + math.exp(-abs(logit))) + abs(logit) / 2  # BCE with target .5
        new = math.log(1 + math.exp(-2))
        assert float(plugin.classify(host)) == pytest.approx((column + new) / 2, rel=1e-6)
        assert column >= math.log(2)


def test_pred_kd_trains_seen_columns_and_scales():
    data = samples(32, classes=4)
    old, new = (data.take(np.flatnonzero(data.labels // 2 == half)) for half in (0, 1))
    made = learner("pred-kd", classes=4)

    def first(step: Any) -> None:
        target = F.one_hot(step.y, 4).float()[:, :2]
        expected = 5 * F.binary_cross_entropy_with_logits(step.logits[:, :2], target)
        assert step.loss == pytest.approx(float(expected), rel=1e-5)

    unseen = made.model[-1].weight[2:].detach().clone()
    made.learn(experience(old), first)
    assert torch.equal(made.model[-1].weight[2:], unseen)

    def second(step: Any) -> None:
        with torch.no_grad():
            answers = teacher(step.x)[:, :2].sigmoid()
        target = torch.cat([answers, F.one_hot(step.y, 4).float()[:, 2:]], 1)
        expected = 5 * F.binary_cross_entropy_with_logits(step.logits, target)
        assert step.loss == pytest.approx(float(expected), rel=1e-5)

    teacher = made.plugins[0].teacher.model(made)
    made.learn(experience(new), second)


def test_feat_kd_takes_the_features_of_the_steps_own_forward():
    made = learner([FeatKd(FeatKd.Config(mu=2.0))])
    data = samples(16)
    made.learn(experience(data))
    teacher = made.plugins[0].teacher.model(made)
    before = {n: v.clone() for n, v in made.model.state_dict().items()}
    student = net()
    found = []

    def check(step: Any) -> None:
        found.append((step.loss, step.x, step.y, step.logits, step.forwards))

    made.learn(experience(data), check)
    loss, x, y, logits, forwards = found[0]
    assert forwards == 16  # the batch and the teacher's: no third forward
    student.load_state_dict(before)
    with torch.no_grad():
        own, kept = student[:3](x), teacher[:3](x)
    expected = F.cross_entropy(logits, y) + 2 * ((own - kept) ** 2).mean()
    assert loss == pytest.approx(float(expected), rel=1e-4)
    assert not made.model[-1]._forward_hooks


def test_feat_kd_beside_plug_ins_with_forwards_of_their_own():
    class Masking(nn.Module):
        """Its answer is not the classifier's tensor, so the step's forward cannot be told."""

        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    data = samples(16)
    for wrapped, forwards in ((False, 8 * 5), (True, 8 * 6)):
        model = nn.Sequential(net(), Masking()) if wrapped else net()
        plugins = create_plugins("feat-kd+refresh+der-pp")
        made = Learner(model, 2, LearnerConfig(batch_size=8), plugins)
        made.learn(experience(data))
        counted: list[int] = []
        made.learn(experience(data), lambda step, into=counted: into.append(step.forwards))
        # Batch, teacher, refresh, two draws of DER++; one more where the batch's is hidden.
        assert counted[-1] == forwards


@pytest.mark.parametrize("name", ["lwf", "pred-kd", "feat-kd", "l2-anchor"])
def test_what_was_kept_is_taken_anew_after_a_request_to_forget(name: str):
    made = learner(name)
    data = samples(16)
    made.learn(experience(data))
    with torch.no_grad():
        made.model[0].weight.add_(1.0)
    made.forget(forget(data.take(np.arange(4))))
    plugin: Any = made.plugins[0]
    kept = plugin.anchor if name == "l2-anchor" else plugin.teacher.state_dict()
    assert torch.equal(kept["0.weight"], made.model[0].weight)


# The recipe for transformers --------------------------------------------------------------------


def test_qkv_moves_projections_and_head_alone():
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=2, img_size=32)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    config = LearnerConfig(lr=0.1, momentum=0.9, weight_decay=0.1, batch_size=4)
    made = Learner(model, 2, config, create_plugins("qkv+l2-anchor+ewc"))
    made.learn(experience(samples(8, side=32)))
    made.learn(experience(samples(8, side=32)))
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    qkv = {n for n in before if ".attn.qkv." in n}
    assert moved == qkv | {"head.weight", "head.bias"}
    assert set(made.plugins[1].anchor) == set(made.plugins[2].fisher) == qkv


def test_qkv_finds_projections_by_kind():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(2, 2) for _ in range(3))
            self.out = nn.Linear(2, 2)

    found = projections(nn.Sequential(nn.MultiheadAttention(2, 1), Attention(), nn.Linear(2, 2)))
    layers = ("query", "key", "value")
    own = {f"1.{layer}.{p}" for layer in layers for p in ("weight", "bias")}
    assert set(found) == {"0.in_proj_weight", "0.in_proj_bias"} | own


def test_qkv_says_what_it_looked_for():
    with pytest.raises(AdapterError, match=r"attention blocks .* qkv, .*Sequential has none"):
        learner("qkv").learn(experience(samples(8)))


def test_strategies_are_plug_ins():
    assert all(isinstance(plugin, Plugin) for plugin in create_plugins("refresh+ewc+l2-anchor"))
