import pytest
import torch

from ulna.errors import UsageError
from ulna.networks.build import build, count_parameters
from ulna.networks.profile.cost import count_gmacs, models
from ulna.recipe import Slot

# docs/papers/unetpp.md, section 2: (1 input channel, 3 input channels)
PUBLISHED = {
    "zhou/unet": (7_759_521, 7_760_097),
    "zhou/wide_unet": (9_130_476, 9_131_106),
    "zhou/unetpp": (9_041_601, 9_042_177),
    "zhou/unetpp_ds": (9_041_700, 9_042_276),
}


def count(name, **options):
    with torch.device("meta"):
        return count_parameters(build(name, **options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_rows_have_the_published_parameters(name):
    assert (count(name), count(name, in_channels=3)) == PUBLISHED[name]
    printed = models(name)[0].entry.published
    assert f"{PUBLISHED[name][0] / 1e6:.2f}" == printed


@pytest.mark.parametrize(
    ("head", "one", "three"),
    [
        ("x0_1", 100_961, 101_537),
        ("x0_2", 511_105, 511_681),
        ("x0_3", 2_204_961, 2_205_537),
        ("x0_4", 9_041_601, 9_042_177),
    ],
)
def test_pruned_unetpp_has_the_published_parameters(head, one, three):
    with torch.device("meta"):
        counts = [count_parameters(build("zhou/unetpp_ds", in_channels=c).prune(head)) for c in (1, 3)]
    assert counts == [one, three]


def test_recommended_builds_add_the_norms():
    assert count("unet") == 7_765_409
    assert count("unetpp", deep_supervision=False, readout="final") == 9_048_897
    assert count("zhou/unet", spatial_dims=3) == 22_575_329
    assert count("zhou/unetpp_ds", spatial_dims=3) == 26_198_372
    assert count("wide_unet") == 9_282_246 + 2 * (2 * 35 * 31 + 2 * 35 * 15)  # everything widened, plus 2 a channel


def test_gmacs_are_those_of_a_hand_count():
    with torch.device("meta"):
        net = build("zhou/unet", channels=(2, 4))
    pixels = 16 * 8
    by_hand = pixels * 9 * (1 * 2 + 2 * 2) + pixels // 4 * 9 * (2 * 4 + 4 * 4)  # encoder
    by_hand += pixels // 4 * 4 * 2 * 4 + pixels * 9 * (4 * 2 + 2 * 2) + pixels * 2  # up, decoder, head
    assert count_gmacs(net, (16, 8)) * 1e9 == by_hand


@pytest.mark.parametrize("name", ["unet", "unetpp"])
@pytest.mark.parametrize("budget", [500_000, 8_500_000])
def test_width_is_matched_to_a_budget(name, budget):
    assert abs(count(name, parameters=budget) / budget - 1) < 0.01


def test_a_slot_entry_applies_where_it_fits():
    net = build(
        "unet",
        channels=(4, 8, 16),
        conv=[
            Slot(kind="residual", levels=(-1,)),
            Slot(kind="double_conv", paths=("decoder",), options={"convs": 3}),
            "double_conv",
        ],
    )
    assert net.stages["x2_0"].conv.shortcut is not None
    assert len(net.stages["x1_1"].conv.layers) == 3
    assert len(net.stages["x0_0"].conv.layers) == 2


def test_levels_that_a_shallow_network_has_not_are_nobodys():
    entries = [Slot(kind="residual", levels=(-3, 7)), Slot(kind="double_conv")]
    shallow, deep = (build("unet", channels=(4,) * n, conv=entries) for n in (2, 3))
    assert all(stage.conv.shortcut is None for stage in shallow.stages.values())
    assert [name for name, stage in deep.stages.items() if stage.conv.shortcut is not None] == ["x0_0", "x0_2"]


def test_same_generator_same_weights():
    def weights(seed):
        return build("unet", channels=(4, 8), generator=torch.Generator().manual_seed(seed)).state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["stages.x0_0.conv.layers.0.conv.weight"], other["stages.x0_0.conv.layers.0.conv.weight"])


def test_he_normal_weights():
    net = build("zhou/unet", generator=torch.Generator().manual_seed(0))
    weight = net.stages["x4_0"].conv.layers[1].conv.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "unet_pp"}, "did you mean 'unetpp'"),
        ({"name": "unet", "conv": "double_cov"}, "did you mean 'double_conv'"),
        ({"name": "unet", "skp": "concat"}, "did you mean 'skip'"),
        ({"name": "unet", "topology": "unett"}, "did you mean 'unet'"),
        ({"name": "unet", "topology": "encoder"}, "no decoder to read densely"),
        ({"name": "unet", "topology": "encoder", "up": "linear"}, "never upsamples, so architecture.up=linear has no"),
        ({"name": "unet", "topology": "encoder", "skip": "add"}, "has no skip connections, so architecture.skip=add"),
        ({"name": "attention_unet", "topology": "encoder"}, "leave skip at concat, or take a topology with a decoder"),
        ({"name": "unet", "conv": [{"kind": "mbconv", "paths": ["decodr"]}, "mbconv"]}, "did you mean 'decoder'"),
        ({"name": "unet", "levels": 40}, "40 levels divide an image by more than 32,768"),
        ({"name": "unetpp", "levels": 40, "parameters": 1_000_000}, "take fewer levels"),
        ({"name": "unet", "conv": {"kind": "double_conv", "options": {"nrm": 1}}}, "did you mean 'norm'"),
        ({"name": "unet", "conv": [{"kind": "double_conv", "levels": [0]}]}, "no entry fits node x1_0"),
        ({"name": "unet", "deep_supervision": True, "readout": "mean"}, "heads of one size"),
        ({"name": "unet", "spatial_dims": 4}, "2 and 3"),
        ({"name": "unet", "channels": (4, 8), "strides": (2, 2)}, "channels give 2, strides give 3"),
        ({"name": "unet", "parameters": 10}, "narrowest such network has"),
        ({"name": "unet", "classes": 0}, "1 or more"),
        ({"name": "unet", "channels": (4, -1)}, "greater than or equal to 1"),
    ],
)
def test_impossible_requests_say_why(options, message):
    with pytest.raises(UsageError, match=message):
        build(**options)
