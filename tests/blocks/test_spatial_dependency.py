"""Spatial dependency layers: projections, blending and counts; the sweep itself is tested in tests/kernels."""

import pytest
import torch

from ulna.blocks import CONV
from ulna.blocks.spatial_dependency import SpatialDependency, SpatialDependencyBlock
from ulna.errors import UsageError
from ulna.kernels.sweep.dispatch import Direction


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("channels", "plain", "residual"),
    [
        (32, 589_982, 604_062),
        (64, 638_014, 684_606),
        (128, 734_078, 900_990),
        (256, 926_206, 1_554_942),
        (512, 1_310_462, 3_747_582),
    ],
)
def test_layer_has_the_parameters_of_the_published_code(channels, plain, residual):
    with torch.device("meta"):
        counts = [
            parameters(SpatialDependency(2, channels, channels, state_channels=150, residual=r)) for r in (False, True)
        ]
    assert counts == [plain, residual]  # two directions, 3 x 3: docs/papers/sdu_net.md, section 1


@pytest.mark.parametrize(("spatial_dims", "neighbours"), [(2, 1), (2, 3), (3, 1), (3, 5), (3, 9)])
@pytest.mark.parametrize("directions", [1, 4])
def test_a_sweep_has_3c_times_kc_plus_c_weights_and_6c_biases(spatial_dims, neighbours, directions):
    C = 7
    layer = SpatialDependency(spatial_dims, 2, 3, state_channels=C, directions=directions, neighbours=neighbours)
    a_sweep = 3 * C * (neighbours * C + C) + 6 * C
    projections = (3**spatial_dims * 2 + 1) * C + (C + 1) * 3
    assert parameters(layer) == projections + directions * a_sweep


def test_directions_by_name_and_by_number():
    def chosen(spatial_dims, directions):
        layer = SpatialDependency(spatial_dims, 1, 1, state_channels=2, directions=directions)
        return [sweep.direction for sweep in layer.sweeps]

    right, down, left, up = (Direction(1), Direction(0), Direction(1, True), Direction(0, True))
    assert chosen(2, None) == [right, down]
    assert chosen(2, 4) == [right, down, left, up]
    assert chosen(2, "left") == [left]
    assert chosen(2, ["up", "right"]) == [up, right]
    assert chosen(3, 6) == [Direction(a, r) for r in (False, True) for a in (2, 1, 0)]
    assert chosen(3, ["backward", "forward"]) == [Direction(0, True), Direction(0)]


def _convolved(x, conv):
    """A 2D convolution with padding, position by position."""
    k = conv.weight.shape[-1]
    padded = torch.nn.functional.pad(x, (k // 2,) * 4)
    N, _, H, W = x.shape
    y = torch.zeros(N, conv.weight.shape[0], H, W, dtype=x.dtype)
    for n in range(N):
        for i in range(H):
            for j in range(W):
                patch = padded[n, :, i : i + k, j : j + k]
                y[n, :, i, j] = (conv.weight * patch).sum((1, 2, 3)) + conv.bias
    return y


def _layer_by_hand(layer, x):
    state = torch.tanh(_convolved(x, layer.project_in))
    C = state.shape[1]
    for sweep in layer.sweeps:  # cell by cell, with torch's own GRU cell
        cell = torch.nn.GRUCell(3 * C, C, dtype=x.dtype)
        cell.weight_ih.data, cell.weight_hh.data = sweep.weight_in.data, sweep.weight_hidden.data
        cell.bias_ih.data, cell.bias_hh.data = sweep.bias_in.data, sweep.bias_hidden.data
        axis, reverse = sweep.direction
        seen = state if axis == 0 else state.transpose(2, 3)
        seen = seen.flip(2) if reverse else seen
        done = seen.clone()
        nothing = torch.zeros(x.shape[0], C, dtype=x.dtype)
        for t in range(1, seen.shape[2]):
            for j in range(seen.shape[3]):
                above = [done[:, :, t - 1, j + s] if 0 <= j + s < seen.shape[3] else nothing for s in (-1, 0, 1)]
                done[:, :, t, j] = cell(torch.cat(above, 1), seen[:, :, t, j]).detach()
        done = done.flip(2) if reverse else done
        state = done if axis == 0 else done.transpose(2, 3)
    y = _convolved(state, layer.project_out)
    if layer.convolution is None:
        return y
    half = y.shape[1] // 2
    g = 1 / (1 + torch.exp(-y[:, half:]))
    return g * _convolved(x, layer.convolution) + (1 - g) * y[:, :half]


@pytest.mark.parametrize("residual", [False, True])
def test_layer_is_its_definition_on_a_map_that_is_not_square(residual):
    torch.manual_seed(0)
    layer = SpatialDependency(2, 2, 3, state_channels=4, directions=4, residual=residual).double()
    x = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), _layer_by_hand(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("spatial_dims", "size"), [(2, (3, 4)), (3, (2, 3, 2))])
def test_gradients_of_the_residual_layer(spatial_dims, size):
    torch.manual_seed(0)
    layer = SpatialDependency(spatial_dims, 2, 2, state_channels=2, directions=2 * spatial_dims, residual=True).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def test_two_axes_reach_where_one_cannot():
    """The cone of one sweep opens by 45 degrees; four sweeps cover the whole map."""

    def reached(directions):
        layer = SpatialDependency(2, 1, 1, state_channels=3, directions=directions, kernel_size=1).double()
        x = torch.randn(1, 1, 7, 5, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x)[0, 0, 3, 2], x)
        return gradient[0, 0] != 0

    row, column = torch.meshgrid(torch.arange(7) - 3, torch.arange(5) - 2, indexing="ij")
    torch.testing.assert_close(reached("down"), (row <= 0) & (column.abs() <= -row))
    assert reached(4).all()


def test_block_has_convolutions_first_and_sdn_layers_last():
    block = SpatialDependencyBlock(2, 3, 4, layers=3, sdn_layers=2, state_channels=5)
    assert [isinstance(layer.conv, SpatialDependency) for layer in block.layers] == [False, True, True]
    assert all(isinstance(layer.norm, torch.nn.BatchNorm2d) for layer in block.layers)
    assert isinstance(block.layers[-1].activation, torch.nn.ReLU)


def test_weights_are_drawn_within_their_bounds_from_the_generator():
    layer = SpatialDependency(2, 8, 8, state_channels=16)
    layer.draw(torch.Generator().manual_seed(3))
    first = {name: p.clone() for name, p in layer.named_parameters()}
    layer.draw(torch.Generator().manual_seed(3))
    assert all(torch.equal(p, first[name]) for name, p in layer.named_parameters())
    assert 0.9 / 4 < layer.sweeps[0].weight_in.abs().max() <= 1 / 4
    assert 0.9 / 72**0.5 < layer.project_in.weight.abs().max() <= 1 / 72**0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": ["right", "upp"]}, "did you mean 'up'"),
        ({"directions": "forward"}, "no direction named 'forward'"),
        ({"directions": 5}, "1 to 4: right, down, left, up"),
        ({"directions": []}, "directions is empty"),
        ({"neighbours": 5}, "choose 1 or 3 in 2D"),
        ({"state_channels": 0}, "from 1 up"),
        ({"kernel_size": 2}, "odd kernel_size"),
        ({"sdn_layers": 3}, "at most layers"),
    ],
)
def test_impossible_options_say_why(options, message):
    with pytest.raises(UsageError, match=message):
        CONV["sdn"](2, 1, 1, **options)
