"""Reading maps at points against loops over points and corners."""

import itertools

import pytest
import torch

from ulna.kernels.points.point_sample import point_sample, point_sample_reference

READERS = [point_sample_reference, point_sample]
# (image, map): whole strides, anisotropic ones, odd sizes that the stride does not divide
SIZES = [((8, 12), (4, 3)), ((7, 5), (4, 3)), ((6, 4, 8), (6, 2, 2)), ((5, 3, 7), (3, 2, 2)), ((1, 4), (1, 1))]


def every_point(size):
    return torch.tensor(list(itertools.product(*map(range, size))))[None]


def literal(fmap, points, size, mode):
    """One image and point at a time: F[x // 2^b, ...] as the paper prints it, or the mean of the corners around it."""
    out = torch.zeros(*points.shape[:2], fmap.shape[1], dtype=fmap.dtype)
    for n, p in itertools.product(range(points.shape[0]), range(points.shape[1])):
        at = points[n, p].tolist()
        strides = [round(s / m + 0.49) for s, m in zip(size, fmap.shape[2:], strict=True)]
        if mode == "nearest":
            out[n, p] = fmap[(n, slice(None), *(a // s for a, s in zip(at, strides, strict=True)))]
            continue
        centres = [(a + 0.5) / s - 0.5 for a, s in zip(at, strides, strict=True)]
        centres = [min(max(c, 0.0), m - 1) for c, m in zip(centres, fmap.shape[2:], strict=True)]
        for corner in itertools.product(*(range(m) for m in fmap.shape[2:])):
            weight = 1.0
            for c, i in zip(centres, corner, strict=True):
                weight *= max(0.0, 1 - abs(c - i))
            out[n, p] += weight * fmap[(n, slice(None), *corner)]
    return out


def channels_last(fmap):
    return fmap.to(memory_format=torch.channels_last if fmap.ndim == 4 else torch.channels_last_3d)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize(("size", "shape"), SIZES)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("read", READERS)
def test_every_voxel_reads_what_lies_there(read, mode, size, shape, layout):
    torch.manual_seed(0)
    fmap = layout(torch.randn(2, 3, *shape, dtype=torch.float64))
    points = every_point(size).repeat(2, 1, 1)
    points[1] = points[1].flip(0)  # every image has points of its own
    torch.testing.assert_close(read(fmap, points, size, mode=mode), literal(fmap, points, size, mode))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
def test_the_fast_path_reads_the_same_bits_and_gives_the_same_gradient(layout, mode, dtype):
    torch.manual_seed(0)
    size, shape = (9, 6, 8), (3, 6, 4)
    points = torch.stack([torch.randint(0, n, (2, 50)) for n in size], dim=-1)
    grads = []
    for read in READERS:
        fmap = layout(torch.arange(2 * 4 * 72).reshape(2, 4, *shape).sin().to(dtype)).requires_grad_()
        rows = read(fmap, points, size, mode=mode)
        (rows.float() * torch.arange(rows.numel()).reshape(rows.shape).cos()).sum().backward()
        grads.append((rows, fmap.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (0.02, 0.02)  # sums of a few values, in bf16
    torch.testing.assert_close(grads[0][1], grads[1][1], atol=atol, rtol=rtol)


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_gradients_add_up_where_points_share_a_vector(mode, layout):
    fmap = layout(torch.randn(1, 2, 2, 3, dtype=torch.float64)).requires_grad_()
    points = torch.tensor([[[0, 0], [1, 1], [0, 1], [3, 5], [2, 2]]])
    assert torch.autograd.gradcheck(lambda f: point_sample(f, points, (4, 6), mode=mode), (fmap,))
    if mode == "nearest":
        point_sample(fmap, points, (4, 6)).sum().backward()
        assert fmap.grad[0, 0].tolist() == [[3.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


def test_linear_reading_is_upsampling():
    fmap = torch.randn(1, 3, 4, 5)
    up = torch.nn.functional.interpolate(fmap, scale_factor=4, mode="bilinear")
    rows = point_sample(fmap, every_point((16, 20)), (16, 20), mode="linear")
    torch.testing.assert_close(rows.transpose(1, 2).reshape(up.shape), up)


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="nearest or linear"):
        point_sample(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, dtype=torch.long), (2, 2), mode="cubic")


def test_sums_of_many_gradients_in_bf16_lose_none_of_them():
    """A sum kept in bf16 stays at 256, where adding 1 changes nothing."""
    fmap = channels_last(torch.zeros(1, 8, 2, 2, dtype=torch.bfloat16)).requires_grad_()
    point_sample(fmap, torch.zeros(1, 1000, 2, dtype=torch.long), (4, 4)).sum().backward()
    assert fmap.grad[0, :, 0, 0].tolist() == [1000.0] * 8
