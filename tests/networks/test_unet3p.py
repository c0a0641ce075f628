"""UNet 3+ against Eq. 1 of its paper, with torch's own operations, and its upsampled heads."""

import pytest
import torch
from torch.nn import functional as F

from tests.networks.test_network import narrow
from ulna.errors import UsageError
from ulna.networks.build import build, ends, named


def conv_norm_relu(layer, x):
    conv, norm = layer.conv, layer.norm
    z = F.conv2d(x, conv.weight, conv.bias, padding=1)
    return F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).relu()


def test_unet3p_computes_its_equations():
    net = narrow("unet3p").double()
    x = torch.randn(1, 1, 12, 8, dtype=torch.float64)
    stages = net.stages

    def H(name, z):
        for layer in stages[name].conv.layers:
            z = conv_norm_relu(layer, z)
        return z

    def C(name, *maps):
        layers = stages[name].skip.convs
        return torch.cat([conv_norm_relu(layer, z) for layer, z in zip(layers, maps, strict=True)], 1)

    def D(z, factor):
        return F.max_pool2d(z, factor)

    def U(z, factor):
        return F.interpolate(z, scale_factor=factor, mode="bilinear")

    en1 = H("x0_0", x)
    en2 = H("x1_0", D(en1, 2))
    de3 = H("x2_0", D(en2, 2))
    de2 = H("x1_1", C("x1_1", U(de3, 2), D(en1, 2), en2))
    de1 = H("x0_2", C("x0_2", U(de2, 2), en1, U(de3, 4)))
    heads = net.outputs(x).heads
    for name, z, factor in (("x2_0", de3, 4), ("x1_1", de2, 2), ("x0_2", de1, 1)):
        head = net.head.convs[name]
        logits = F.conv2d(z, head.weight, head.bias, padding=1)
        torch.testing.assert_close(heads[name], U(logits, factor) if factor > 1 else logits)
    assert torch.equal(net(x), heads["x0_2"])


def test_strides_of_several_levels_are_one_long_step_along_every_axis():
    net = build("unet3p", spatial_dims=3, channels=(4, 6, 8, 10), strides=((1, 2, 2), (2, 2, 2), (2, 1, 2)))
    brought = net.stages["x0_3"].bring  # of x0_0, x2_1 and x3_0
    assert [getattr(getattr(one, "upsample", None), "scale_factor", None) for one in brought] == [
        None,
        (2, 4, 4),
        (4, 4, 8),
    ]
    assert net(torch.zeros(1, 1, 5, 9, 17)).shape == (1, 1, 5, 9, 17)


def test_a_network_can_end_at_every_upsampled_head():
    assert ends(named("unet3p")) == ("x4_0", "x3_1", "x2_2", "x1_3", "x0_4")
    assert ends(named("unet3p").replaced(head="dense")) == ("x0_4",)


def test_a_head_of_an_even_kernel_is_refused():
    with pytest.raises(UsageError, match=r"architecture\.head\.dense: kernel_size is 2; it must be odd"):
        build("unet", head={"kind": "dense", "options": {"kernel_size": 2}})
