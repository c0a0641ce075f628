"""What a network costs, counted by hand on networks small enough."""

import pytest

from ulna.networks.build import build
from ulna.networks.profile.cost import kept_per_voxel


def test_a_training_step_keeps_the_inputs_of_its_convolutions():
    """Image of 3 channels, then twice a map of 4: each the input of the next convolution, activated in place."""
    net = build("zhou/unet", in_channels=3, channels=(4,))
    assert kept_per_voxel(net, (16, 12)) == 3 + 4 + 4


def test_a_pool_keeps_its_places_and_a_coarser_map_counts_by_its_share():
    """Encoder 1 + 4, pooled 4 / 4 with as many places, then 6 / 4; decoder: fused 8 + 4, 4, 4."""
    net = build("zhou/unet", channels=(4, 6))
    encoder, pool, deep = 1 + 4 + 4, 2 * 4 / 4, (6 + 6) / 4
    decoder = (4 + 4) + 4 + 4
    assert kept_per_voxel(net, (16, 12)) == pytest.approx(encoder + pool + deep + decoder)


def test_counting_leaves_the_network_as_it_was():
    net = build("unet", channels=(4, 6)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert kept_per_voxel(net, (16, 12)) > 0
    assert not net.training
    assert all((tensor == before[name]).all() for name, tensor in net.state_dict().items())


def test_a_step_that_reads_points_keeps_what_it_needs_for_those_alone():
    net = build("implicit_unet", channels=(4, 6), head={"kind": "points", "options": {"width": 32, "depth": 2}})
    few, some, many = (kept_per_voxel(net, (16, 16), points=n) for n in (1, 64, 127))
    assert many - some == pytest.approx(some - few)
    assert few < some < many < kept_per_voxel(net, (16, 16))
