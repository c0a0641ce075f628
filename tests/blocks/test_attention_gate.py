"""The attention gate against its equations, pixel by pixel."""

import pytest
import torch

from tests.blocks import literal
from ulna.blocks.attention_gate import AttentionGate

SIZES = {2: (3, 4), 3: (2, 3, 2)}


def gated(gate, g, x):
    p = dict(gate.named_parameters())
    q = literal.relu(literal.conv(x, p["theta.weight"]) + literal.conv(g, p["phi.weight"], p["phi.bias"]))
    a = literal.sigmoid(literal.conv(q, p["psi.weight"], p["psi.bias"]))
    y = literal.conv(a * x, p["project.weight"], p["project.bias"])
    return literal.batch_norm(y, p["norm.weight"], p["norm.bias"], 1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_skip_passes_its_own_gate(spatial_dims):
    block = literal.randomise(AttentionGate(spatial_dims, 3, (4, 1)))
    up, *skips = (literal.random_map(2, c, *SIZES[spatial_dims], seed=c) for c in (3, 4, 1))
    expected = torch.cat([up, gated(block.gates[0], up, skips[0]), gated(block.gates[1], up, skips[1])], dim=1)
    literal.assert_equal(block, [up, *skips], block(up, skips), expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradients_are_those_of_finite_differences(spatial_dims):
    block = literal.randomise(AttentionGate(spatial_dims, 2, (2,)))
    up, skip = (literal.random_map(2, 2, *SIZES[spatial_dims], seed=s) for s in (1, 2))
    assert torch.autograd.gradcheck(lambda g, x: block(g, [x]), (up, skip))


def test_a_shut_gate_stops_a_skip_and_an_open_one_passes_it():
    gate = AttentionGate(2, 2, (2,), norm="none").gates[0]
    g, x = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        gate.psi.weight.zero_()
        gate.psi.bias.fill_(-200.0)
        torch.testing.assert_close(gate(g, x), gate.project.bias.view(1, 2, 1, 1).expand_as(x))
        gate.psi.bias.fill_(200.0)
        torch.testing.assert_close(gate(g, x), gate.project(x))


def test_inside_there_are_half_the_channels_but_at_least_one():
    inner = [gate.theta.out_channels for gate in AttentionGate(2, 8, (7, 2, 1)).gates]
    assert inner == [3, 1, 1]
