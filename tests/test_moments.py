import pytest
import torch

from tta import moments

SHAPES = [(4, 3), (4, 3, 5), (4, 3, 5, 6), (1, 3, 2, 2)]


def values(shape, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(0)
    x = 7 + torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(memory_format=layout) if x.ndim == 4 else x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("correction", [0, 1])
def test_of_batch_is_var_mean(shape, layout, correction):
    x = values(shape, layout)
    dims = [d for d in range(x.ndim) if d != 1]
    expected = torch.var_mean(x, dims, correction=correction)
    torch.testing.assert_close(
        moments.of_batch(x, correction=correction), expected, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("correction", [0, 1])
def test_of_images_is_var_mean(shape, correction):
    x = values(shape)
    expected = torch.var_mean(x, list(range(2, x.ndim)), correction=correction)
    torch.testing.assert_close(
        moments.of_images(x, correction=correction), expected, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("which", [moments.of_batch, moments.of_images])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_gradients(which, shape):
    x = values(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: which(y, correction=1), (x,))


def test_float32_keeps_digits_where_the_mean_is_large():
    x = (1000 + values((8, 2, 16, 16))).float()
    var, _ = moments.of_batch(x)
    torch.testing.assert_close(
        var.double(), x.double().var([0, 2, 3], correction=0), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0, 1000])
def test_without_a_gradient_the_moments_are_the_same(layout, mean):
    x = (mean + values((8, 3, 16, 16), layout)).float()
    with_graph = moments.of_batch(x.clone().requires_grad_(), correction=1)
    torch.testing.assert_close(moments.of_batch(x, correction=1), with_graph, rtol=1e-4, atol=1e-6)


def head(var, mean, weight, bias):
    """Of the image's own and the batch's, bent: each gradient has a part of its own."""
    whole_var, whole_mean = moments.over_images(var, mean, 1)
    scale = (var + 2 * whole_var.sqrt() + 1).rsqrt() * weight
    return scale, bias - (mean + 0.3 * whole_mean**2) * scale


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 6), (2, 3, 2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("by_channel", [False, True])
def test_normalised(shape, layout, by_channel):
    def made(var, mean, weight, bias):
        scale, shift = head(var, mean, weight, bias)
        return (scale.mean(0), shift.mean(0)) if by_channel else (scale, shift)

    x = values(shape, layout).requires_grad_()
    weight, bias = (torch.rand(3, dtype=torch.float64).requires_grad_() for _ in range(2))
    positions = list(range(2, x.ndim))
    expected = moments.affine(x, *made(*torch.var_mean(x, positions, correction=0), weight, bias))
    out = moments.normalised(x, made, weight, bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(moments.normalised(x, made, weight, bias), out)
    assert torch.autograd.gradcheck(
        lambda *v: moments.normalised(v[0], made, *v[1:]), (x, weight, bias)
    )
    # The first layer of a network: what it is shown has no gradient.
    assert torch.autograd.gradcheck(
        lambda *v: moments.normalised(x.detach(), made, *v), (weight, bias)
    )
    # Parameters that stand still.
    assert torch.autograd.gradcheck(
        lambda v: moments.normalised(v, made, weight.detach(), bias.detach()), (x,)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_robust(layout, share):
    x = values((4, 3, 5, 6), layout).requires_grad_()
    weight, bias = (torch.rand(3, dtype=torch.float64).requires_grad_() for _ in range(2))
    mean, var = torch.rand(3, dtype=torch.float64), 1 + torch.rand(3, dtype=torch.float64)

    def slow(x, weight, bias):
        own_var, own_mean = torch.var_mean(x, [0, 2, 3], correction=0)
        new_mean, new_var = torch.lerp(mean, own_mean, share), torch.lerp(var, own_var, share)
        scale = weight * (new_var + 1e-5).rsqrt()
        return moments.affine(x, scale, bias - new_mean * scale), new_mean, new_var

    def fast(x, weight, bias):
        return moments.robust(x, weight, bias, mean, var, share, 1e-5)

    for one, other in zip(fast(x, weight, bias), slow(x, weight, bias), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *v: fast(*v)[0], (x, weight, bias))
    assert torch.autograd.gradcheck(lambda *v: fast(x.detach(), *v)[0], (weight, bias))
