"""omega-Net and the rows of its table: wiring, counts to the integer, the flow of one network, dual supervision."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.networks.test_build import count
from ulna.losses import make_loss
from ulna.networks.build import build
from ulna.networks.catalog import NAMED
from ulna.networks.wiring import omega
from ulna.planning.choosing import recommended
from ulna.recipe import Slot

CASCADE = Slot(kind="cascade_msc", paths=("skip",))
BARE = Slot(kind="double_conv", options={"norm": "none"})
# docs/papers/omega_net.md, section 6: (1 input channel, 3 input channels)
COUNTED = {
    "wang/unet": (31_042_434, 31_043_586),
    "wang/omega_net": (60_123_244, 60_124_396),
    "wang/omega_net_mda_star": (114_443_884, 114_445_036),
}


def test_both_paths_meet_at_every_level():
    wiring = omega(4)
    assert wiring.heads == ("aux0", "main0")
    m1, aux1, main1 = (wiring.node(name) for name in ("m1", "aux1", "main1"))
    assert (m1.source, m1.skips, m1.convolve) == ("aux2", ("k1",), False)
    assert (aux1.source, aux1.skips) == ("m1", ())
    assert (main1.source, main1.skips) == ("main2", ("m1",))
    assert wiring.node("m2").source == wiring.node("main2").source == "x3_0"
    assert wiring.pyramid == ("main0", "main1", "main2", "x3_0")
    assert not any(node.path == "main" for node in wiring.keep("aux0").nodes)


@pytest.mark.parametrize("name", COUNTED)
def test_rows_have_the_counted_parameters(name):
    assert tuple(count(name, classes=2, in_channels=c) for c in (1, 3)) == COUNTED[name]


def test_variants_have_the_counted_parameters():
    """docs/papers/omega_net.md, section 6, for one input channel: without norm, and with cascades inside the attention."""
    inside = [Slot(kind="mdsa", paths=("main",), options={"cascade": True}), "concat"]
    assert count("wang/omega_net", classes=2, conv=[CASCADE, BARE]) == 60_107_628
    assert count("wang/omega_net", classes=2, skip=inside) == 114_443_884
    assert count("wang/unet", classes=2, conv=BARE) == 31_030_658
    plain = [Slot(kind="identity", paths=("skip",)), "double_conv"]
    assert count("wang/omega_net", classes=2, conv=plain) == 46_541_164  # no cascade
    assert count("wang/omega_net", classes=2, conv=plain, skip="concat") == 46_368_324  # nor attention


def test_the_rows_differ_in_the_cascade_of_the_attention_alone():
    plain, star = (NAMED[name].architecture for name in ("wang/omega_net", "wang/omega_net_mda_star"))
    assert plain.replaced(skip=star.skip) == star
    net = build("wang/omega_net_mda_star", channels=(2, 4), classes=2)
    assert type(net.stages["main0"].skip.refine[0][0]).__name__ == "CascadeMultiScale"
    net = build("wang/omega_net", channels=(2, 4), classes=2)
    assert type(net.stages["main0"].skip.refine[0][0]).__name__ == "Identity"


def test_channel_attention_starts_one_hot_and_hardly_anywhere_at_its_own_channel(shared_data):
    """docs/papers/omega_net.md, section 5: on real nuclei, each channel gets one of a few large ones."""
    images = torch.from_numpy(np.load(shared_data / "nuclei96" / "train.npz")["images"][:2]).permute(0, 3, 1, 2).float()
    images = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True)
    net = build("wang/omega_net", in_channels=3, classes=2, generator=torch.Generator().manual_seed(1))
    found = {}
    for level in range(4):
        channels = net.stages[f"main{level}"].skip.refine[0][2]
        channels.register_forward_pre_hook(lambda module, x, level=level: found.update({level: module.attention(x[0])}))
    with torch.no_grad():
        net(images)
    for rows in found.values():
        largest, at = rows.max(dim=2)
        assert (largest > 0.99).float().mean() > 0.9
        assert (at == torch.arange(rows.shape[1])).float().mean() < 0.1
    assert all(len(of_image.unique()) < 20 for of_image in found[0].argmax(2))  # of 128


def test_fcn_is_the_encoder_and_three_scores():
    widths = (64, 128, 256, 512, 1024)
    pairs = zip((1, *widths[:-1]), widths, strict=True)
    convolutions = sum(9 * (a * b + b * b) + 2 * b + 4 * b for a, b in pairs)  # weights, biases, two batch norms
    assert count("wang/fcn", classes=2) == convolutions + 2 * (256 + 512 + 1024) + 3 * 2


def test_omega_net_computes_its_equations():
    net = build("omega_net", channels=(2, 3), classes=2, skip="concat").double().eval()
    x = torch.randn(1, 1, 6, 4, dtype=torch.float64)
    stages = net.stages

    def H(name, z):
        for layer in stages[name].conv.layers:
            z = F.conv2d(z, layer.conv.weight, layer.conv.bias, padding=1)
            z = F.batch_norm(
                z, layer.norm.running_mean, layer.norm.running_var, layer.norm.weight, layer.norm.bias
            ).relu()
        return z

    def U(name, z):
        conv = stages[name].resample.conv
        return F.conv_transpose2d(z, conv.weight, conv.bias, stride=2)

    e1 = H("x0_0", x)
    e2 = H("x1_0", F.max_pool2d(e1, 2))
    M = torch.cat([U("m0", e2), stages["k0"].conv(e1)], 1)  # Eq. 9
    heads = {"aux0": H("aux0", M), "main0": H("main0", torch.cat([U("main0", e2), M], 1))}  # Eq. 3 and 5
    outputs = net.outputs(x)
    assert list(outputs.heads) == ["aux0", "main0"]
    for name, maps in heads.items():
        conv = net.head.convs[name]
        torch.testing.assert_close(outputs.heads[name], F.conv2d(maps, conv.weight, conv.bias))
    assert torch.equal(outputs.logits, outputs.heads["main0"])


def test_main_path_attends_to_what_the_aux_path_fused():
    net = build("omega_net", channels=(4, 6, 8))
    kinds = {name: type(stage.skip).__name__ for name, stage in net.stages.items() if stage.skip is not None}
    assert kinds == {
        "m1": "Concat", "m0": "Concat", "main1": "MultiDimensionalAttention", "main0": "MultiDimensionalAttention",
    }  # fmt: skip
    assert {type(net.stages[f"k{i}"].conv).__name__ for i in (0, 1)} == {"CascadeMultiScale"}


@pytest.mark.parametrize("name", ["omega_net", "wang/omega_net", "wang/omega_net_mda_star"])
def test_dual_supervision_weighs_the_final_map_ten_to_one(name):
    net = build(name, channels=(2, 3), classes=2).eval()
    recipe = recommended(name)
    loss = make_loss(recipe.loss.kind, heads=recipe.loss.heads, multilabel=True)
    outputs = net.outputs(torch.randn(1, 1, 8, 8))
    total, parts = loss(outputs, torch.randint(0, 2, (1, 2, 8, 8)))
    torch.testing.assert_close(total, (10 * parts["main0"] + parts["aux0"]) / 11)


def test_rows_of_the_paper_train_as_it_says():
    for name in (name for name in NAMED if name.startswith("wang/")):
        recipe = recommended(name)
        assert (recipe.loss.kind, recipe.optimizer.kind) == ("cross_entropy", "adam")
        assert recipe.optimizer.weight_decay == 1.5e-4
        assert recipe.training.accumulate * recipe.planning.batch == 8
        assert (NAMED[name].input, NAMED[name].maps) == ((1, 512, 512), 2)


@pytest.mark.parametrize("levels", [1, 2])
def test_scores_exist_for_shallow_networks_too(levels):
    net = build("fcn", channels=(4, 6)[:levels], classes=3)
    assert net(torch.randn(1, 1, 7, 5)).shape == (1, 3, 7, 5)
