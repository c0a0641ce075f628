"""Sweeps of exported networks: one loop operator each, with the values of the reference."""

import io

import pytest
import torch
from torch import nn

from ulna.kernels.sweep.dispatch import Direction, Gates, force, sweep, sweep_reference
from ulna.networks.build import build

CASES = [
    (shape, neighbours, Direction(axis, reverse))
    for shape, neighbours in (((2, 4, 5, 7), 3), ((1, 4, 3, 6), 1), ((1, 3, 4, 2, 5), 9), ((1, 3, 4, 2, 5), 5))
    for axis in range(len(shape) - 2)
    for reverse in (False, True)
]
FAST = [*CASES[:4], CASES[-1]]  # an export takes a second
LEVELS = {"kind": "sdn", "levels": (-2,), "options": {"state_channels": 4, "residual": True}}


class Sweep(nn.Module):
    """A sweep as a network, with random weights."""

    def __init__(self, channels, neighbours, direction):
        super().__init__()
        self.cell = nn.GRUCell(neighbours * channels, channels)
        self.direction = direction

    def gates(self):
        return Gates(self.cell.weight_ih, self.cell.weight_hh, self.cell.bias_ih, self.cell.bias_hh)

    def forward(self, x):
        return sweep(x, self.gates(), self.direction)


def loops(program):
    return sum(node.target is torch.ops.higher_order.scan for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("shape", "neighbours", "direction"),
    [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_an_exported_sweep_is_one_loop_and_equals_the_reference(shape, neighbours, direction):
    torch.manual_seed(0)
    layer, x = Sweep(shape[1], neighbours, direction), torch.randn(shape)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        torch.testing.assert_close(program.module()(x), sweep_reference(x, layer.gates(), direction))
    assert loops(program) == 1


def test_a_map_of_one_line_needs_no_loop():
    layer, x = Sweep(4, 3, Direction(0)), torch.randn(1, 4, 1, 5)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
    assert loops(program) == 0
    assert torch.equal(program.module()(x), x)


def test_a_pinned_reference_is_exported_as_it_stands():
    layer, x = Sweep(4, 3, Direction(0)), torch.randn(1, 4, 3, 5)
    with torch.no_grad(), force("reference"):
        assert loops(torch.export.export(layer, (x,))) == 0


def test_with_gradients_on_an_exported_sweep_can_be_trained():
    layer, x = Sweep(3, 3, Direction(1)), torch.randn(1, 3, 4, 5)
    program = torch.export.export(layer, (x,))
    program.module()(x).sum().backward()
    assert loops(program) == 0
    assert all(weight.grad is not None for weight in layer.parameters())


@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("sdu_net", (12, 10), marks=pytest.mark.slow),
        pytest.param("sdnu_net", (9, 12), marks=pytest.mark.slow),
        pytest.param("sdu_net", (8, 6, 5), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_networks_with_sweeps_run_in_onnx(name, size):
    pytest.importorskip("onnxscript", reason="ONNX is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    torch.manual_seed(0)
    net = build(name, channels=(4, 6), conv=[LEVELS, "double_conv"], spatial_dims=len(size)).eval()
    image, file = torch.randn(1, 1, *size), io.BytesIO()
    with torch.no_grad():
        expected = net(image)
        program = torch.onnx.export(net, (image,), dynamo=True, verbose=False)
    program.save(file)
    assert {node.op_type for node in program.model_proto.graph.node} >= {"Scan", "Conv"}
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(file.getvalue(), options)
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
