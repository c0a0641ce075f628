"""Derivatives beyond the first, reverse one: those of torch's operations in float64, for every kernel of our own."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from ulna import build
from ulna.kernels import door, native, normalize
from ulna.kernels.convolution import convolve
from ulna.kernels.convolution.chunked import convolve_chunked
from ulna.kernels.convolution.depthwise import convolve_depthwise
from ulna.kernels.normalize import batch_norm, instance_norm
from ulna.kernels.points.fused_mlp import fused_mlp, fused_mlp_reference
from ulna.kernels.points.point_sample import point_sample, point_sample_reference
from ulna.kernels.sweep import dispatch as sweeps
from ulna.kernels.sweep.dispatch import Direction, Gates, sweep, sweep_reference

needs_native = pytest.mark.skipif(not native.available(), reason="no native kernels here: torch's own operations run")
Function = Callable[..., Tensor]


def _last(x: Tensor) -> Tensor:
    if door.transformed():  # a map of torch.vmap cannot say how it lies in memory
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _instance(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=w, bias=b, eps=1e-3), 0.3)


def _batch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, w, b, training=True, eps=1e-3)


def _ours_batch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    x = _last(x)
    if not normalize.suits(x, w, b):  # as the block that calls it does
        return _batch(x, w, b)
    return batch_norm(x, w, b, eps=1e-3)[0]


def _joined(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(torch.cat([a, b], 1), w, padding=1)


def _swept(by: Function, direction: Direction, x: Tensor, *gates: Tensor) -> Tensor:
    return by(x, Gates(*gates), direction)


def _pinned(path: str, x: Tensor, *gates: Tensor) -> Tensor:
    with sweeps.force(path):
        return _swept(sweep, Direction(0), x, *gates)


def _mlp(by: Function, skip_layer: int, x: Tensor, *layers: Tensor) -> Tensor:
    half = len(layers) // 2
    return by(x, layers[:half], layers[half:], skip_layer=skip_layer)


POINTS = torch.randint(0, 8, (2, 30, 2), generator=torch.Generator().manual_seed(5))
AT = torch.randint(0, 20, (40,), generator=torch.Generator().manual_seed(6))
C = 4
SWEEP_2D = ((3 * C, 3 * C), (3 * C, C), (3 * C,), (3 * C,))
SWEEP_3D = ((3 * C, 5 * C), (3 * C, C), (3 * C,), (3 * C,))
MLP = ((9, 5), (9, 14), (2, 9), (9,), (9,), (2,))
# ours, the definition by torch, shapes of the inputs
KERNELS: dict[str, tuple[Function, Function, tuple[tuple[int, ...], ...]]] = {
    "convolution": (convolve, partial(F.conv2d, padding=1), ((2, 8, 16, 16), (9, 8, 3, 3), (9,))),
    "convolution 3D": (convolve, partial(F.conv3d, padding=1), ((1, 8, 3, 16, 16), (8, 8, 3, 3, 3), (8,))),
    "convolution of maps": (
        lambda a, b, w: convolve([a, b], w, None),
        _joined,
        ((1, 5, 24, 24), (1, 7, 24, 24), (8, 12, 3, 3)),
    ),
    "instance norm": (
        lambda x, w, b: instance_norm(_last(x), w, b, eps=1e-3, slope=0.3),
        _instance,
        ((2, 5, 8, 8), (5,), (5,)),
    ),
    "batch norm": (_ours_batch, _batch, ((2, 5, 3, 6, 6), (5,), (5,))),
    "depthwise": (
        partial(convolve_depthwise, stride=(1, 1, 1), padding=(1, 1, 1)),
        partial(F.conv3d, padding=1, groups=4),
        ((1, 4, 4, 5, 6), (4, 1, 3, 3, 3), (4,)),
    ),
    "chunked": (
        partial(convolve_chunked, stride=(1, 1), padding=(1, 1)),
        partial(F.conv2d, padding=1),
        ((1, 4, 9, 8), (5, 4, 3, 3), (5,)),
    ),
    "nearest points": (
        lambda x: point_sample(_last(x), POINTS, (8, 8)),
        lambda x: point_sample_reference(x, POINTS, (8, 8)),
        ((2, 3, 4, 4),),
    ),
    "linear points": (
        lambda x: point_sample(_last(x), POINTS, (8, 8), mode="linear"),
        lambda x: point_sample_reference(x, POINTS, (8, 8), mode="linear"),
        ((2, 3, 4, 4),),
    ),
    "fused MLP": (partial(_mlp, fused_mlp, 2), partial(_mlp, fused_mlp_reference, 2), ((40, 5), *MLP)),
    "fused MLP that reads": (
        lambda x, m, *layers: fused_mlp(x, layers[:3], layers[3:], skip_layer=2, read=[(m, AT)]),
        lambda x, m, *layers: fused_mlp_reference(torch.cat([m[AT], x], 1), layers[:3], layers[3:], skip_layer=2),
        ((40, 2), (20, 3), *MLP),
    ),
    "sweep": (
        partial(_swept, sweep, Direction(0)),
        partial(_swept, sweep_reference, Direction(0)),
        ((2, C, 5, 6), *SWEEP_2D),
    ),
    "sweep by lines": (
        lambda *t: _pinned("lines", *t),
        partial(_swept, sweep_reference, Direction(0)),
        ((2, C, 5, 6), *SWEEP_2D),
    ),
    "sweep 3D": (
        partial(_swept, sweep, Direction(1, True)),
        partial(_swept, sweep_reference, Direction(1, True)),
        ((1, C, 3, 4, 5), *SWEEP_3D),
    ),
}
# many float32 products of values about 1, and second derivatives divide by deviations: 1e-3 of the largest value leaves room
# for the transforms of the native convolution, and what is wrong is wrong by the value itself
ROOM = 1e-3


def drawn(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator) * (0.4 if i else 1.0) for i, shape in enumerate(shapes)]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= ROOM * theirs.abs().max().clamp_min(1e-6)


def second(f: Function, inputs: list[Tensor]) -> list[Tensor]:
    """Derivatives of the length of all gradients, as a gradient penalty takes them."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    found = torch.autograd.grad(f(*leaves).pow(3).mean(), leaves, create_graph=True)
    return list(torch.autograd.grad(torch.stack([g.pow(2).sum() for g in found]).sum(), leaves))


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest) -> Iterator[tuple[Function, Function, list[Tensor]]]:
    ours, theirs, shapes = KERNELS[request.param]
    yield ours, theirs, drawn(shapes)


def test_second_derivatives_are_those_of_torch(kernel) -> None:
    ours, theirs, inputs = kernel
    for a, b in zip(second(ours, inputs), second(theirs, [t.double() for t in inputs]), strict=True):
        assert_near(a, b)


def test_first_derivatives_that_can_be_derived_again_are_the_plain_ones(kernel) -> None:
    ours, _, inputs = kernel
    leaves = [t.clone().requires_grad_() for t in inputs]
    plain, again = (
        torch.autograd.grad(ours(*leaves).square().mean(), leaves, create_graph=create) for create in (False, True)
    )
    for a, b in zip(plain, again, strict=True):
        assert_near(b.detach(), a)


def test_inputs_that_hang_together_are_not_derived_twice(kernel) -> None:
    """A map made from its own weights: the way over the map belongs to the map's gradient alone."""
    ours, theirs, inputs = kernel

    def of_last(f: Function, last: Tensor, rest: list[Tensor]) -> Tensor:
        return f(rest[0] * last.mean(), *rest[1:], last) if rest else f(last * last.mean())

    one, two = (
        second(partial(lambda last, f, dtype: of_last(f, last, [t.to(dtype) for t in inputs[:-1]]), f=f, dtype=d), [v])
        for f, d, v in ((ours, torch.float32, inputs[-1]), (theirs, torch.float64, inputs[-1].double()))
    )
    assert_near(one[0], two[0])


# torch's own, where it first loads its forward-mode derivatives
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_derivatives_are_those_of_torch(kernel) -> None:
    ours, theirs, inputs = kernel
    tangents = [torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(inputs)]
    exact = torch.func.jvp(
        theirs, tuple(t.double() for t in inputs), tuple(t.double() for t in tangents), strict=False
    )[1]
    assert_near(torch.func.jvp(ours, tuple(inputs), tuple(tangents))[1], exact)
    assert_near(torch.autograd.functional.jvp(ours, tuple(inputs), tuple(tangents))[1], exact)
    for grads in (True, False):
        with torch.set_grad_enabled(grads), forward_ad.dual_level():
            made = ours(*(forward_ad.make_dual(t, v) for t, v in zip(inputs, tangents, strict=True)))
            tangent = forward_ad.unpack_dual(made).tangent
            assert tangent is not None
            assert_near(tangent, exact)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms_of_functions_are_those_of_torch(kernel) -> None:
    ours, theirs, inputs = kernel
    exact = [t.double() for t in inputs]
    every = tuple(range(len(inputs)))

    def loss(f: Function) -> Function:
        return lambda *t: f(*t).square().mean()

    for a, b in zip(
        torch.func.grad(loss(ours), every)(*inputs), torch.func.grad(loss(theirs), every)(*exact), strict=True
    ):
        assert_near(a, b)
    copies = [torch.stack([t, 2 * t]) for t in inputs]
    assert_near(
        torch.func.vmap(ours)(*copies),
        torch.stack([theirs(*(t.double() for t in one)) for one in zip(*copies, strict=True)]),
    )

    def curvature(f: Function, t: list[Tensor]) -> Tensor:  # forward over reverse, in the direction of the input itself
        return torch.func.jvp(torch.func.grad(loss(f), 0), tuple(t), tuple(t))[1]

    assert_near(curvature(ours, inputs), curvature(theirs, exact))


def test_many_gradients_at_once_are_those_of_torch(kernel) -> None:
    """A Jacobian row by row: the backward pass is mapped over a batch of gradients."""
    ours, theirs, inputs = kernel
    rows = []
    for f, dtype in ((ours, torch.float32), (theirs, torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        made = f(*leaves)
        grads = torch.randn((3, *made.shape), generator=torch.Generator().manual_seed(1)).to(dtype)
        rows.append(torch.autograd.grad(made, leaves, grads, is_grads_batched=True))
    for a, b in zip(*rows, strict=True):
        assert_near(a, b)


def test_dropped_values_stay_dropped_in_second_derivatives() -> None:
    x, *layers = (t.requires_grad_() for t in drawn(((40, 5), *MLP)))
    y = fused_mlp(x, layers[:3], layers[3:], dropout=0.4, skip_layer=2)
    first, *_ = torch.autograd.grad(y.sum(), [x, *layers], retain_graph=True)
    again, *_ = torch.autograd.grad(y.sum(), [x, *layers], create_graph=True)
    torch.testing.assert_close(again, first)
    # piecewise linear in x: the second derivative by it is 0, that by the weights is not
    of_weights = torch.autograd.grad(again.square().sum(), layers[:3])
    assert all(g.abs().max() > 0 for g in of_weights)


NETWORKS = {
    "unet": {"parameters": 60_000},
    "unetpp": {"parameters": 60_000},
    "nnunet": {"channels": (8, 12, 16), "strides": (2, 2)},
    "sdu_net": {"channels": (8, 12)},
    "omega_net": {"channels": (8, 12), "skip": "concat"},
    "implicit_unet": {"channels": (8, 12, 16)},
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.share(3)
def test_a_gradient_penalty_over_a_network_is_that_of_float64(name: str, training: bool) -> None:
    """Against torch's operations alone: in float64, by the reference of sweeps."""
    generator = torch.Generator().manual_seed(2)
    net = build(name, in_channels=1, classes=2, spatial_dims=2, generator=generator, **NETWORKS[name])
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if name == "implicit_unet":
        net.head.decoder.dropout = 0.0  # type: ignore[union-attr]
    net = net.to(memory_format=torch.channels_last).train(training)  # type: ignore[call-overload]
    image = torch.randn(2, 1, 48, 48, generator=generator)

    def penalty(dtype: torch.dtype) -> list[Tensor]:
        x = image.to(dtype).requires_grad_()
        (g,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        found = torch.autograd.grad(g.square().sum(), list(net.parameters()), allow_unused=True)
        return [torch.zeros(()) if f is None else f for f in found]

    ours = penalty(torch.float32)
    net.double()
    with sweeps.force("reference"):
        theirs = penalty(torch.float64)
    # by the length of each: single values are near 0, and a ReLU may fall on the other side
    size = max(t.norm() for t in theirs)
    errors = [(a - b).norm() / size for a, b in zip(ours, theirs, strict=True)]
    assert len(errors) > 5 and size > 0
    assert sorted(errors)[len(errors) // 2] < 1e-3 and max(errors) < 0.1


@needs_native
def test_the_kernels_of_this_file_are_our_own() -> None:
    """What is compared above would be torch's own with itself."""
    x, w, b = (t.requires_grad_() for t in drawn(KERNELS["convolution"][2]))
    assert type(convolve(x, w, b).grad_fn).__name__ == "_ConvolutionBackward"
    x, w, b = (t.requires_grad_() for t in drawn(KERNELS["instance norm"][2]))
    assert "NormalizeBackward" in type(instance_norm(_last(x), w, b, eps=1e-3).grad_fn).__name__
    x, *layers = (t.requires_grad_() for t in drawn(KERNELS["fused MLP"][2]))
    assert "_FusedMlp" in type(fused_mlp(x, layers[:3], layers[3:], skip_layer=2).grad_fn).__name__


def test_maps_that_are_computed_again_have_the_same_derivatives() -> None:
    """Second ones, and those of torch.func, which cannot look into what is computed again."""
    net = build("unet", in_channels=1, channels=(8, 12), generator=torch.Generator().manual_seed(1)).train()
    image = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(2))

    def penalty() -> Tensor:
        x = image.clone().requires_grad_()
        (g,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        net.zero_grad()
        g.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    expected = penalty()
    net.activation_checkpointing = True
    found = penalty()
    assert (found - expected).norm() < 1e-3 * expected.norm()
    # statistics are written where they lie, which torch.func forbids: so without
    net.eval()
    of_image = torch.func.grad(lambda x: net(x).square().sum())(image)
    leaf = image.clone().requires_grad_()
    (plain,) = torch.autograd.grad(net(leaf).square().sum(), leaf)
    assert (of_image - plain).norm() < 1e-3 * plain.norm()


def test_second_derivatives_without_memory_have_their_shapes() -> None:
    """Meta tensors know no autocast, which a gradient by torch's operations switches off."""
    sizes = ((7, 4), (5, 4), (2, 5), (5,), (2,))
    x, *layers = (torch.randn(size, device="meta", requires_grad=True) for size in sizes)
    y = fused_mlp(x, layers[:2], layers[2:])
    first = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), layers[0])[0]
    assert second.shape == layers[0].shape and second.device.type == "meta"
