"""The peak of a pass, counted without memory, against what a few operations are known to hold."""

import torch
from torch import nn

from ulna import build
from ulna.networks.profile.memory import _Peak, peak_bytes

MB = 2**20


def test_the_peak_counts_what_lives_at_once_and_views_once():
    with _Peak() as peak:
        a = torch.zeros(MB, dtype=torch.uint8, device="meta")
        b = a.view(-1, 2) + 1  # a second MB beside the first
        del a
        c = b * 2  # still two: the first is gone
        del b
        assert peak.now == MB
        d = torch.zeros(3 * MB, dtype=torch.uint8, device="meta")
        assert (peak.now, peak.most) == (4 * MB, 4 * MB)
        del c, d
    assert (peak.now, peak.most) == (0, 4 * MB)


def test_a_training_step_of_one_convolution_holds_its_output_and_gradients():
    """A map of 16 channels, its copy through ReLU in place, logits and the gradients of both: by hand."""
    network = build(
        "unet", spatial_dims=2, channels=(16,), strides=(), conv={"kind": "double_conv", "options": {"norm": "none"}}
    )
    plane = 4 * 64 * 64
    step = peak_bytes(network, (64, 64), batch=1, training=True)
    # two maps of 16 channels, one gradient of a map or two, and a few logits
    assert 2 * 16 * plane < step < 5 * 16 * plane
    answer = peak_bytes(network, (64, 64), batch=1, training=False)
    assert 16 * plane < answer < 3 * 16 * plane


def test_bf16_halves_maps_batches_multiply_them_and_the_network_is_left_alone():
    network = build("unetpp", spatial_dims=2, channels=(8, 16, 24))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one = peak_bytes(network, (64, 64), training=True)
    assert 0.45 < peak_bytes(network, (64, 64), training=True, bf16=True) / one < 0.6
    assert 2.8 < peak_bytes(network, (64, 64), batch=3, training=True) / one < 3.2
    assert peak_bytes(network, (64, 64), training=False) < one / 2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(isinstance(p, nn.Parameter) and p.grad is None and p.device.type == "cpu" for p in network.parameters())


def test_few_points_take_less_than_many():
    network = build("implicit_unet", spatial_dims=3, channels=(8, 16))
    few, many = (peak_bytes(network, (16, 16, 16), training=True, points=points) for points in (100, 2000))
    assert few < many
