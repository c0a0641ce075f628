"""The rows of the SDU-Net paper: parameters to the integer, work to the printed digits, and that they learn."""

import pytest
import torch

from tests.networks.test_network import check_program
from ulna.blocks.spatial_dependency import SpatialDependency
from ulna.networks.build import build
from ulna.networks.profile.cost import count_gmacs, models
from ulna.networks.profile.ptflops import count_ptflops_gmacs
from ulna.planning.choosing import choose

# 3 channels in, 1 map out: docs/papers/sdu_net.md, section 2 and section 3
PARAMETERS = {
    "unet_nuclei": 1_799_393,
    "unetpp_nuclei": 2_236_161,
    "sdu_net_nuclei": 5_409_749,
    "sdnu_net_nuclei": 5_414_517,
    "unet_polyps": 7_243_745,
    "unetpp_polyps": 9_163_329,
    "sdu_net_polyps": 10_363_097,
    "sdnu_net_polyps": 11_093_053,
    "unet_liver": 7_243_745,
    "unetpp_liver": 9_163_329,
    "sdu_net_liver": 10_363_097,
    "sdnu_net_liver": 11_093_053,
}
PTFLOPS = {
    "unet_nuclei": 1.3071,
    "unetpp_nuclei": 2.8711,
    "unet_polyps": 2.2783,
    "unetpp_polyps": 6.4970,
    "unet_liver": 1.7087,
    "unetpp_liver": 4.8727,
    "sdu_net_polyps": 3.0098,
}


@pytest.mark.parametrize("row", PARAMETERS)
def test_rows_have_the_counted_parameters(row):
    assert models(f"carvalho/{row}")[0].parameters() == PARAMETERS[row]


@pytest.mark.parametrize(("row", "one"), [("unet_nuclei", 1_798_817), ("unetpp_polyps", 9_162_753)])
def test_rows_with_one_channel(row, one):
    assert models(f"carvalho/{row}")[0].parameters(in_channels=1) == one


@pytest.mark.parametrize("row", PTFLOPS)
def test_rows_have_the_work_that_ptflops_counts(row):
    assert round(models(f"carvalho/{row}")[0].ptflops_gmacs(), 4) == PTFLOPS[row]


def test_ptflops_by_hand():
    with torch.device("meta"):
        net = build("carvalho/unet_nuclei", channels=(2, 4), in_channels=1)
    large, small = 16 * 8, 8 * 4
    fine = large * ((9 * 1 + 1) * 2 + (9 * 2 + 1) * 2 + 2 * (2 + 1) * 2)  # convolution and bias, norm 2, ReLU 1
    deep = small * ((9 * 2 + 1) * 4 + (9 * 4 + 1) * 4 + 2 * (2 + 1) * 4)
    pool, up = large * 2, large * 4 + large * (4 + 1) * 2  # upsampled, then projected
    merge = large * ((9 * 4 + 1) * 2 + (9 * 2 + 1) * 2 + 2 * (2 + 1) * 2)
    head = large * (2 + 1)
    assert count_ptflops_gmacs(net, (16, 8)) * 1e9 == fine + deep + pool + up + merge + head


@pytest.mark.parametrize(("spatial_dims", "neighbours"), [(2, 1), (2, 3), (3, 5), (3, 9)])
def test_gmacs_of_sweeps_are_those_of_a_hand_count(spatial_dims, neighbours):
    C, size, out = 5, (8, 6, 4)[:spatial_dims], 3
    options = {"state_channels": C, "neighbours": neighbours, "layers": 1, "directions": 2 * spatial_dims}
    with torch.device("meta"):
        net = build("unet", channels=(out,), conv={"kind": "sdn", "options": options}, spatial_dims=spatial_dims)
    positions = 1
    for length in size:
        positions *= length
    swept = sum(2 * (positions - positions // length) for length in size)  # no product for the first line
    by_hand = swept * (3 * C * neighbours * C + 3 * C * C)
    by_hand += positions * (3**spatial_dims * C + C * out + out)  # project in, project out, head
    assert count_gmacs(net, size) * 1e9 == pytest.approx(by_hand)


def test_sdn_layers_sit_where_the_rows_say():
    def places(row):
        with torch.device("meta"):
            net = build(row, in_channels=3)
        found = {}
        for node, stage in net.stages.items():
            if layers := [m for m in stage.modules() if isinstance(m, SpatialDependency)]:
                found[node] = len(layers)
        return found

    assert places("carvalho/sdu_net_polyps") == {"x2_0": 1, "x3_0": 1, "x2_2": 1, "x1_3": 1}
    assert places("carvalho/sdu_net_nuclei") == {"x2_0": 2, "x2_1": 2, "x1_2": 2}
    assert places("carvalho/sdnu_net_polyps") == {"x3_0": 1, "x3_1": 1}
    assert places("carvalho/sdnu_net_nuclei") == {"x2_0": 2, "x2_1": 2, "x3_0": 2}
    assert set(places("sdu_net")) == {"x2_0", "x3_0", "x2_2", "x3_1"}


def test_options_of_the_layer_are_set_from_the_command_line():
    values = ("state_channels=9", "directions=[up, left]", "neighbours=1", "residual=false", "kernel_size=1")
    recipe = choose(
        model="carvalho/sdu_net_polyps", recipe=None, set=[f"architecture.conv.sdn.{value}" for value in values]
    )
    with torch.device("meta"):
        net = build("carvalho/sdu_net_polyps", conv=recipe.architecture.conv)
    layer = net.stages["x2_0"].conv.layers[1].conv
    assert layer.sweeps[0].weight_in.shape == (27, 9)
    assert [sweep.direction for sweep in layer.sweeps] == [(0, True), (1, True)]
    assert layer.convolution is None
    assert layer.project_in.weight.shape[2:] == (1, 1)


SMALL = {"kind": "sdn", "levels": (-2,), "options": {"state_channels": 8, "residual": True}}


@pytest.mark.parametrize("name", ["sdu_net", "sdnu_net"])
def test_a_network_with_sweeps_overfits_two_images(name):
    torch.manual_seed(0)
    net = build(name, channels=(8, 16), conv=[SMALL, "double_conv"], generator=torch.Generator().manual_seed(0)).train()
    image = torch.randn(2, 1, 12, 16)
    target = (torch.nn.functional.avg_pool2d(image, 5, 1, 2) > 0).float()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    agreement = ((net(image) > 0) == (target > 0)).float().mean()
    assert agreement > 0.98


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [
        ("sdu_net", 2),
        pytest.param("sdnu_net", 2, marks=pytest.mark.slow),
        pytest.param("sdu_net", 3, marks=pytest.mark.slow),
    ],
)
def test_networks_with_sweeps_can_be_exported(name, spatial_dims):
    net = build(name, channels=(4, 6), conv=[SMALL, "double_conv"], spatial_dims=spatial_dims).eval()
    image = torch.randn(1, 1, *(8, 6, 4)[:spatial_dims])
    program = torch.export.export(net, (image,))
    check_program(program.module(), net, image)
