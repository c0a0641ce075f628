import pytest
import torch

from tests.blocks import literal
from ulna.blocks import nd
from ulna.errors import UsageError


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_convolution_keeps_size_and_divides_it_by_its_stride(spatial_dims):
    x = torch.zeros(1, 2, *(9, 12, 7)[:spatial_dims])
    assert nd.conv(spatial_dims, 2, 3)(x).shape == (1, 3, *x.shape[2:])
    assert nd.conv(spatial_dims, 2, 3, stride=2)(x).shape[2:] == tuple(-(-n // 2) for n in x.shape[2:])


def test_transposed_convolution_writes_every_pixel_from_one_source():
    up = nd.transposed_conv(2, 1, 1, stride=(1, 2), bias=False)
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    y = up(x)
    k = up.weight[0, 0, 0]
    assert y.shape == (1, 1, 2, 6)
    torch.testing.assert_close(y[0, 0, :, 0::2], x[0, 0] * k[0])
    torch.testing.assert_close(y[0, 0, :, 1::2], x[0, 0] * k[1])


def test_instance_norm_equals_its_definition_and_is_defined_for_one_voxel():
    norm = nd.InstanceNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
    expected = (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(1, 3, 1, 1) + norm.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), expected)
    single = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(norm(single), norm.bias.view(1, 3, 1, 1).expand(2, 3, 1, 1))


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (1, 3, 2)])
def test_averages_at_a_border_are_over_the_pixels_inside(size):
    x = literal.random_map(1, 2, *size)
    for stride in ((1,) * len(size), (2,) * len(size)):
        torch.testing.assert_close(nd.average_pool(len(size), stride)(x), literal.average3(x, stride))
        largest = nd.max_pool(len(size), stride, kernel_size=3)(x)
        torch.testing.assert_close(largest, literal.max3(x, stride))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 1, 1, 1)])
def test_batch_norm_of_one_value_says_what_to_do(shape):
    norm = nd.norm("batch", len(shape) - 2, 3)
    with pytest.raises(UsageError, match=r"cannot train on one value per channel .* take larger images"):
        norm(torch.zeros(shape))
    assert norm(torch.zeros(2, *shape[1:])).shape == (2, *shape[1:])
    assert norm.eval()(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("wrong", [1, 4, "2"])
def test_other_dimensions_are_refused(wrong):
    with pytest.raises(UsageError, match="2 and 3"):
        nd.conv(wrong, 1, 1)


def test_one_number_per_axis():
    assert nd.per_axis(2, 3) == (2, 2, 2)
    assert nd.per_axis((1, 2, 2), 3) == (1, 2, 2)
    with pytest.raises(UsageError, match="per spatial axis"):
        nd.per_axis((1, 2), 3)
    with pytest.raises(UsageError, match="from 1 up"):
        nd.per_axis(0, 2)


@pytest.mark.parametrize(("make", "name"), [(lambda n: nd.norm(n, 2, 4), "btach"), (nd.activation, "rleu")])
def test_unknown_names_list_the_nearest(make, name):
    with pytest.raises(UsageError, match="did you mean"):
        make(name)


@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_instance_norm_is_the_same_in_every_memory_layout(layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    norm = nd.norm("instance", 3, 3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    mean = x.mean(dim=(2, 3, 4), keepdim=True)
    spread = ((x - mean) ** 2).mean(dim=(2, 3, 4), keepdim=True)
    shape = (1, 3, 1, 1, 1)
    expected = (x - mean) / (spread + 1e-5).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
    torch.testing.assert_close(norm(x.contiguous(memory_format=layout)), expected)


@pytest.mark.parametrize(("dims", "size"), [(2, 40), (3, 12)])
@pytest.mark.parametrize("channels", [12, 17, 24, 40])
def test_a_dilated_convolution_under_autocast_has_its_whole_gradient(dims, size, channels):
    """Whatever lies in freed memory: here NaN."""
    layout = nd.layout(dims, True)
    conv = nd.conv(dims, channels, 10, dilation=2).to(memory_format=layout)
    x = torch.randn(2, channels, *(size,) * dims).contiguous(memory_format=layout)
    slope = torch.randn(2, 10, *(size,) * dims)
    conv(x).backward(slope)
    want, conv.weight.grad = conv.weight.grad, None
    for _ in range(5):
        junk = [torch.full((300_003,), float("nan")) for _ in range(6)]
        del junk
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        y.backward(slope.to(y.dtype))
        assert torch.allclose(conv.weight.grad, want, atol=0.02 * float(want.abs().max()))
        conv.weight.grad = None


def test_maxima_of_volumes_stay_in_the_precision_of_the_map_under_autocast():
    x = torch.randn(1, 2, 6, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    exact = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = nd.max_pool(3, (2, 1, 2))(x)
    wanted = torch.nn.functional.max_pool3d(exact, (2, 1, 2))
    assert y.dtype == torch.bfloat16 and torch.equal(y.float(), wanted)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    y.backward(dy)
    wanted.backward(dy.float())
    assert torch.equal(x.grad.float(), exact.grad)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 3), (2, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mean_of_windows_is_the_same_in_any_layout(stride, channels):
    x = torch.randn(2, channels, 4, 6, 6, dtype=torch.float64)
    expected = torch.nn.functional.avg_pool3d(x, stride)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        given = x.contiguous(memory_format=layout).requires_grad_()
        made = nd.mean_pool(3, stride)(given)
        torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
        (slope,) = torch.autograd.grad(made.square().sum(), given)
        wanted = (2 * expected / stride[0] / stride[1] / stride[2]).detach()
        for axis, step in enumerate(stride, start=2):
            wanted = wanted.repeat_interleave(step, dim=axis)
        torch.testing.assert_close(slope, wanted)
    if channels > 1:
        assert made.is_contiguous(memory_format=torch.channels_last_3d)
