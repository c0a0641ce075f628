"""Up to which size an image is predicted in one piece: not where a network was taught within a part of what it is given."""

import pytest
import torch
import yaml

import ulna
from tests.foreign_code import FORMS
from ulna.blocks.spatial_dependency import Sweep
from ulna.networks.build import build
from ulna.networks.catalog import NAMED
from ulna.planning.sizes import WHOLE_IMAGE, whole_image_limit
from ulna.recipe import Foreign

OTHERS = Foreign(source="monai:SwinUNETR", divisor=(32, 32, 32), least=(64, 32, 32))


FEW = {"levels": 2, "base_channels": 4, "channels": None}
BASES = [name for name in NAMED if "/" not in name]


def small(name, spatial_dims=2):
    torch.manual_seed(0)
    return build(name, in_channels=1, classes=2, spatial_dims=spatial_dims, **FEW).eval()


@pytest.mark.parametrize("name", BASES)
def test_networks_that_take_means_answer_by_what_is_far_away(name):
    """Farther than convolutions of two levels reach; a sweep carries what it saw from end to end, and takes no means."""
    network, image = small(name), torch.rand(1, 1, 8, 320, generator=torch.Generator().manual_seed(1))
    other = image.clone()
    other[..., 250:] *= 3
    with torch.no_grad():
        one, two = network(image)[..., :8], network(other)[..., :8]
    if any(isinstance(module, Sweep) for module in network.modules()):
        assert not network.takes_means
    else:
        assert network.takes_means == (not torch.allclose(one, two, rtol=1e-5, atol=1e-6))


def test_images_are_whole_where_the_network_takes_no_means():
    reasons = {}
    assert whole_image_limit(small("unet", 3), None, (32, 32, 32), reasons) == WHOLE_IMAGE[3]
    assert whole_image_limit(small("unet"), None, (64, 64), reasons) == WHOLE_IMAGE[2]
    assert not reasons


@pytest.mark.parametrize("patch", [(64, 64), (1024, 1024)])
@pytest.mark.parametrize("name", ["nnunet", "mednext", "efficient_unet", "omega_net"])
def test_images_go_by_windows_where_it_does(name, patch):
    reasons = {}
    assert whole_image_limit(small(name), None, patch, reasons) == 0
    assert reasons["whole_image_limit"].startswith(
        "none: images are predicted in windows of the patch, for the network"
    )


def test_so_does_any_network_whose_norm_is_one_of_instances():
    torch.manual_seed(0)
    conv = [{"kind": "double_conv", "options": {"norm": "instance"}}]
    network = build("unet", in_channels=1, classes=2, spatial_dims=2, **FEW, conv=conv)
    assert network.takes_means and whole_image_limit(network, None, (64, 64), {}) == 0


def test_a_large_patch_is_whole_in_any_case():
    assert whole_image_limit(small("unet", 3), None, (96, 96, 96), {}) == 96**3


@pytest.mark.parametrize(
    ("divisor", "least", "patch", "padded"),
    [
        ((32, 32, 32), (64, 32, 32), (64, 32, 32), False),
        ((32, 32, 32), (64, 32, 32), (32, 32, 32), True),
        ((32, 32, 32), (64, 32, 32), (64, 32, 40), True),
        (16, None, (32, 48, 32), False),
        (16, None, (32, 40, 32), True),
    ],
)
def test_a_network_of_others_goes_by_windows(divisor, least, patch, padded):
    reasons = {}
    foreign = OTHERS.replaced(divisor=divisor, least=least)
    assert whole_image_limit(small("unet", 3), foreign, patch, reasons) == 0
    assert ("which the network pads" in reasons["whole_image_limit"]) == padded


def test_a_plan_says_so(tmp_path, discs):
    words = ("planning.patch=[16,16]", "planning.batch=2", "training.min_steps=2", "architecture.channels=[4,8]")
    run = ulna.train(discs, model="nnunet", out=tmp_path / "run", epochs=1, set=words)
    plan = yaml.safe_load((run.folder / "plan.yaml").read_text())
    assert plan["whole_image_limit"] == 0 and "takes means over all" in plan["reasons"]["whole_image_limit"]


def test_a_training_of_padded_patches_predicts_in_windows_of_them(tmp_path, discs):
    code = tmp_path / "forms.py"
    code.write_text(FORMS)
    words = ("planning.patch=[12,12]", "planning.batch=2", "training.min_steps=2")
    run = ulna.train(discs, model=f"module:{code}:Flat", out=tmp_path / "run", epochs=1, set=words)
    plan = yaml.safe_load((run.folder / "plan.yaml").read_text())
    assert plan["patch"] == [12, 12] and plan["whole_image_limit"] == 0
    assert plan["reasons"]["whole_image_limit"].startswith("none: images are predicted in windows of the patch")
