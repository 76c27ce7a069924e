"""Hand-computed values of the methods' definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tta
from tta import losses, norms
from tta.adapters.deyo import DeYO

Z = torch.tensor([[2, 0, -1], [0.5, 0.4, 0.3], [-1, 3, 0], [0, 0, 4]], dtype=torch.float64)
Z_DESTROYED = torch.tensor(
    [[1, 0.5, -0.5], [0.2, 0.1, 0.9], [0, 2, -1], [-1, 1, 2]], dtype=torch.float64
)


class Table(nn.Module):
    """Returns given logits for the images' row numbers, scaled by a norm layer's weight."""

    def __init__(self, *tables: torch.Tensor) -> None:
        super().__init__()
        self.tables = tables
        self.calls = 0
        self.norm = nn.LayerNorm(1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.tables[self.calls % len(self.tables)]
        self.calls += 1
        rows = x[:, 0, 0, 0].round().long()
        return table[rows] * self.norm.weight + self.norm.bias


def images(rows: int) -> torch.Tensor:
    values = torch.arange(rows, dtype=torch.float64)
    return values[:, None, None, None].expand(-1, 3, 4, 4).clone()


def test_entropy_and_its_gradient() -> None:
    logits = Z.clone().requires_grad_()
    entropy = losses.entropy(logits)
    expected = [0.5242666, 1.0952873, 0.2743131, 0.1773237]
    assert entropy.tolist() == pytest.approx(expected, abs=1e-7)
    entropy.mean().backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.0747646, 0.0469793, 0.0277852], abs=1e-7)


def test_entropy_of_dense_logits_is_that_of_the_pixels() -> None:
    dense = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    flat = dense.permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(losses.entropy(dense).flatten(), losses.entropy(flat))


def test_tent_loss() -> None:
    adapter = tta.wrap(Table(Z), "tent")
    adapter(images(4))
    assert adapter.report["loss"] == pytest.approx(0.5177977, abs=1e-7)
    assert adapter.report["backwards"] == 4


def test_tent_with_dense_logits_equals_the_flattened_pixels() -> None:
    """A segmentation head: the update is that of the mean entropy over all pixels."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))
    x = torch.rand(2, 3, 5, 5)
    dense = tta.wrap(net, "tent", optimizer="sgd", lr=0.1)
    dense(x)
    by_hand = tta.wrap(net, "tent", optimizer="sgd", lr=0.1)
    logits = by_hand.model(x)
    pixels = logits.permute(0, 2, 3, 1).reshape(-1, 4)
    losses.entropy(pixels).mean().backward()
    with torch.no_grad():
        by_hand.model[1].weight -= 0.1 * by_hand.model[1].weight.grad
    torch.testing.assert_close(dense.model[1].weight, by_hand.model[1].weight)


def test_deyo_selection_weights_and_loss() -> None:
    seen = {}

    class Recorded(DeYO):
        def _label_drop(self, x, logits, rows, step):
            plpd = super()._label_drop(x, logits, rows, step)
            seen.update(rows=rows.tolist(), plpd=plpd.tolist())
            return plpd

    config = DeYO.Config(entropy_threshold=0.8, entropy_margin=0.4, skip_top="none")
    adapter = Recorded(Table(Z, Z_DESTROYED), config)
    adapter(images(4))
    assert seen["rows"] == [0, 2, 3]
    assert seen["plpd"] == pytest.approx([0.2972453, 0.0924448, 0.2592786], abs=1e-7)
    assert adapter.report["selected_fraction"] == 0.5
    assert adapter.report["backwards"] == 2
    assert adapter.report["forwards"] == 7
    assert adapter.report["loss"] == pytest.approx(0.8238228, abs=1e-7)


@pytest.mark.parametrize("threshold", [0.0, 0.8])
def test_deyo_skips_an_empty_selection(threshold: float) -> None:
    """No confident sample, or none whose label falls: no update, the logits still come."""
    config = {"entropy_threshold": threshold, "plpd_threshold": 1.0, "skip_top": "none"}
    adapter = tta.wrap(Table(Z, Z_DESTROYED), "deyo", **config)
    assert torch.equal(adapter(images(4)), Z)
    assert adapter.report["selected_fraction"] == 0
    assert adapter.report["backwards"] == 0


@pytest.mark.parametrize("side", [8, 10])
def test_deyo_patches_are_a_permutation(side: int) -> None:
    adapter = tta.wrap(Table(Z), "deyo", skip_top="none", patch_grid=2)
    x = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    order = adapter.patch_permutations(3)
    assert [sorted(row) for row in order.tolist()] == [[0, 1, 2, 3]] * 3
    out = adapter.destroy(x, torch.arange(3))
    half = side // 2
    patches = [(0, 0), (0, half), (half, 0), (half, half)]
    for image in range(3):
        for slot, source in enumerate(order[image].tolist()):
            (r, c), (sr, sc) = patches[slot], patches[source]
            assert torch.equal(
                out[image, :, r : r + half, c : c + half],
                x[image, :, sr : sr + half, sc : sc + half],
            )


def test_deyo_resizes_where_the_grid_does_not_divide() -> None:
    adapter = tta.wrap(Table(Z), "deyo", skip_top="none", patch_grid=3)
    x = torch.rand(2, 3, 10, 13, generator=torch.Generator().manual_seed(0))
    out = adapter.destroy(x, torch.arange(2))
    assert out.shape == x.shape
    assert not torch.equal(out, x)


def test_deyo_permutations_do_not_depend_on_the_selection() -> None:
    adapter = tta.wrap(Table(Z), "deyo", skip_top="none")
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    every = adapter.destroy(x, torch.arange(6))
    some = adapter.destroy(x, torch.tensor([1, 4]))
    assert torch.equal(every[[1, 4]], some)


def test_deyo_pixel_and_occlusion() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixel = tta.wrap(Table(Z), "deyo", skip_top="none", destruction="pixel")
    out = pixel.destroy(x, torch.arange(2))
    assert torch.equal(out.flatten(2).sort(-1)[0], x.flatten(2).sort(-1)[0])
    occlusion = tta.wrap(Table(Z), "deyo", skip_top="none", destruction="occlusion")
    out = occlusion.destroy(x, torch.arange(2))
    mean = x.mean((2, 3))[:, :, None, None].expand(-1, -1, 4, 4)
    torch.testing.assert_close(out[:, :, 2:6, 2:6], mean)
    assert torch.equal(out[:, :, :2], x[:, :, :2])


def small_bn() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(1), nn.LazyLinear(5))
    net(torch.rand(2, 3, 6, 6))
    with torch.no_grad():
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
    return net.double()


def normalised(net: nn.Sequential, x: torch.Tensor, mean, var) -> torch.Tensor:
    h = net[0](x)
    shape = (1, -1, 1, 1)
    h = (h - mean.view(shape)) / (var.view(shape) + net[1].eps).sqrt()
    return net[3](net[2](h * net[1].weight.view(shape) + net[1].bias.view(shape)))


@pytest.mark.parametrize("n", [1, 5])
def test_norm_statistics_by_hand(n: int) -> None:
    net = small_bn()
    x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    h = net[0](x).detach()
    mean, var, unbiased = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0), h.var((0, 2, 3))
    source_mean, source_var = net[1].running_mean.clone(), net[1].running_var.clone()
    expected = {
        (): (mean, var),
        (("statistics", "alpha"), ("alpha", 0.3)): (
            0.7 * source_mean + 0.3 * mean,
            0.7 * source_var + 0.3 * unbiased,
        ),
        (("statistics", "alpha"), ("prior", 16.0)): (
            (16 * source_mean + n * mean) / (16 + n),
            (16 * source_var + n * unbiased) / (16 + n),
        ),
        (("statistics", "ema"),): (
            0.9 * source_mean + 0.1 * mean,
            0.9 * source_var + 0.1 * unbiased,
        ),
    }
    for options, (m, v) in expected.items():
        adapter = tta.wrap(net, "norm", **dict(options))
        torch.testing.assert_close(adapter(x), normalised(net, x, m, v).detach())


def test_norm_ema_keeps_its_average_and_the_others_do_not() -> None:
    net = small_bn()
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    for statistics, moves in {"test": False, "alpha": False, "ema": True}.items():
        adapter = tta.wrap(net, "norm", statistics=statistics)
        first, second = adapter(x), adapter(x)
        assert torch.equal(first, second) is not moves
        changed = not torch.equal(adapter.model[1].running_mean, net[1].running_mean)
        assert changed is moves


def test_alpha_gives_the_statistics_back_after_an_error() -> None:
    net = small_bn()
    adapter = tta.wrap(net, "norm", statistics="alpha")
    with pytest.raises(RuntimeError):
        adapter(torch.rand(2, 3, 9, 9).double())  # the linear layer refuses the size
    assert torch.equal(adapter.model[1].running_mean, net[1].running_mean)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    net = small_bn()
    net[0].weight.data.mul_(1e302)
    adapter = tta.wrap(net, "tent", lr=1.0)
    before = adapter.state_dict()["model.1.weight"]
    x = torch.full((2, 3, 6, 6), 1e9, dtype=torch.float64)
    adapter(x)  # usable images, infinite activations
    assert adapter.report["update_refused"] == 1
    assert torch.equal(adapter.state_dict()["model.1.weight"], before)
    assert bool(adapter(torch.rand(2, 3, 6, 6).double()).isfinite().all())


def test_thresholds_follow_the_number_of_classes() -> None:
    """Entropy 0.5 ln K is the limit for any K: not ln 1000 for everything."""
    for classes in (10, 100):
        logits = torch.zeros(2, classes, dtype=torch.float64)
        logits[0, 0] = 20.0  # certain
        adapter = tta.wrap(Table(logits), "deyo", skip_top="none", plpd_threshold=-1.0)
        adapter(images(2))
        assert adapter.report["selected_fraction"] == 0.5
        assert adapter.report["entropy"] == pytest.approx(math.log(classes) / 2, abs=1e-5)


def test_episodic_equals_a_reset_before_each_batch() -> None:
    net = small_bn()
    batches = [torch.rand(4, 3, 6, 6).double() for _ in range(3)]
    episodic = tta.wrap(net, "tent", lr=0.1, steps=2, episodic=True)
    plain = tta.wrap(net, "tent", lr=0.1, steps=2)
    for x in batches:
        plain.reset()
        assert torch.equal(episodic(x), plain(x))


def test_several_steps_return_the_last_forward() -> None:
    net = small_bn()
    x = torch.rand(4, 3, 6, 6).double()
    two = tta.wrap(net, "tent", lr=0.1, steps=2)(x)
    one = tta.wrap(net, "tent", lr=0.1)
    one(x)
    assert torch.equal(two, one(x))


def test_norms_adapted_are_the_only_parameters_that_move() -> None:
    net = small_bn()
    adapter = tta.wrap(net, "tent", lr=0.1)
    adapter(torch.rand(4, 3, 6, 6).double())
    state = adapter.state_dict()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, state[f"model.{k}"])}
    assert moved == {"1.weight", "1.bias"}
    assert [layer.kind for layer in norms.find(net)] == ["bn"]


@pytest.mark.parametrize("method", ["eata", "rotta", "t3a", "deyo"])
def test_what_reset_restores_moves_with_the_adapter(method: str) -> None:
    """After a change of precision (or device) ``reset`` restores tensors of the new kind."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    adapter = tta.wrap(net, method)
    x = torch.rand(6, 3, 8, 8)
    if adapter.needs.source_data:
        adapter.fit_source([x])
    adapter.double()
    first = adapter(x.double())
    adapter(x.double())
    adapter.reset()
    kinds = {t.dtype for t in _floats([adapter._initial["tensors"], adapter._initial["states"]])}
    assert kinds == {torch.float64}
    assert torch.equal(adapter(x.double()), first)


def _floats(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in _floats(part)] if isinstance(value, list | tuple) else []
