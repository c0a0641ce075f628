"""The rows of the modular U-Net paper: counts of docs/papers/modular_unet.md, section 3, and the flow of one network."""

import pytest
import torch
from torch.nn import functional as F

from tests.networks.test_build import count
from ulna.networks.build import build
from ulna.networks.catalog import NAMED

COUNTED = {
    "laird/unet": 8_512_586,
    "laird/attention_unet": 8_500_370,
    "laird/nas_unet": 8_509_337,
    "laird/nas_reduction_unet": 8_456_513,
    "laird/efficient_unet": 8_492_769,
}


@pytest.mark.parametrize("name", COUNTED)
def test_rows_have_the_counted_parameters_and_the_printed_8_5_million(name):
    assert count(name, in_channels=NAMED[name].input[0]) == COUNTED[name]
    assert f"{COUNTED[name] / 1e6:.1f}" == NAMED[name].published


@pytest.mark.parametrize(
    ("skip", "conv", "counted"),
    [
        ("concat", "double_conv", 7_766_273),
        ("attention_gate", "double_conv", 7_942_277),
        ("concat", "mbconv", 6_828_106),
    ],
)
def test_modules_at_32_to_512_channels_have_the_counted_parameters(skip, conv, counted):
    assert count("unet", in_channels=4, skip=skip, conv=conv) == counted


def test_without_norm_the_row_is_smaller_by_its_norms():
    assert count("laird/unet", in_channels=4, conv={"kind": "double_conv", "options": {"norm": "none"}}) == 8_506_418


def test_reduction_network_skips_what_enters_a_cell_and_has_no_other_convolution_on_the_way_down():
    net = build("laird/nas_reduction_unet", in_channels=2, channels=(12, 24)).double().eval()
    image = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    stages = net.stages
    stem = stages["x0_0"].conv.layers[0]
    x00 = stem.norm(F.conv2d(image, stem.conv.weight, padding=1))
    x10 = stages["x1_0"].conv(stages["x1_0"].resample(x00))
    up = stages["x0_1"].resample(x10)
    project = stages["x0_1"].skip.project[0]
    fused = torch.cat([up, F.conv2d(x00, project.weight, project.bias)], 1)
    head = net.head.convs["x0_1"]
    torch.testing.assert_close(net(image), F.conv2d(stages["x0_1"].conv(fused), head.weight, head.bias))
