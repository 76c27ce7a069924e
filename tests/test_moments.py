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
