"""What a 2D network's answer for a volume depends on: the gradient of the whole volume, slice by slice."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

import ulna
from tests.inference.test_slices import net_of, plan_of
from tests.volumes import draw_balls
from ulna.data.pipeline.slices import neighbourhoods
from ulna.explaining.methods import best_window, saliency, window_size
from ulna.explaining.seeing import Piece, most_seen, seen
from ulna.recipe import Whitening

TINY = ("planning.spatial_dims=2", "planning.neighbours=1", "architecture.channels=[4, 8]", "planning.batch=4",
        "training.min_steps=4")  # fmt: skip


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_saliency_is_the_gradient_by_every_voxel_of_the_volume(neighbours, axis, whole, whitened):
    size = [19, 20, 17]
    size[axis] = 4
    plan = plan_of(axis, neighbours, whole_image_limit=10**6 if whole else 0)
    if whitened:
        plan = plan.replaced(whitening=Whitening(mean=(0.0,), matrix=((3.0,),)))
    network = net_of(plan)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    region = torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.6
    window = window_size(network, plan, size, 1e9)
    assert window[axis] == 1
    network.requires_grad_(False)
    found = saliency(network, image, plan, target=0, region=region, size=window, overlap=0.5)

    x = image.clone().requires_grad_()
    if whole:
        logits = network(neighbourhoods(x, axis, range(4), neighbours)).movedim(0, axis + 1)[0]
        (gradient,) = torch.autograd.grad(logits[region].sum(), x)
        wanted = (3.0 if whitened else 1.0) * gradient.abs()
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    else:
        assert found.shape == image.shape and bool((found > 0).any())


def test_the_slice_that_is_shown_is_that_with_the_most_of_the_region():
    plan = plan_of(1, neighbours=1)
    region = torch.zeros(6, 5, 7, dtype=torch.bool)
    region[:3, 3], region[:2, 1] = True, True
    piece = best_window(most_seen(region, region, plan.slices), (6, 1, 7), 0.5)
    assert piece == Piece((0, 3, 0), (6, 1, 7))
    image = torch.arange(6.0 * 5 * 7).reshape(1, 6, 5, 7)
    assert torch.equal(seen(image, piece, plan.slices), image[0].movedim(1, 0)[2:5])
    tie = torch.zeros(6, 5, 7, dtype=torch.bool)
    tie[2, 4, 2] = True
    assert most_seen(region, tie, plan.slices).any(), "where the grids differ by a slice's last voxel"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unet", "attention_unet"])
def test_explain_writes_volumes_and_shows_a_slice(tmp_path, model):
    data = draw_balls(tmp_path / "data", 4, stored="SAR", channels=2)
    changes = TINY if model == "unet" else (*TINY, "planning.slice_axis=0")
    run = ulna.train(data, model=model, out=tmp_path / "run", epochs=1, set=changes)
    made = ulna.explain(run.folder, data, case="ball3", tta=True, out=tmp_path / "why")
    image = nib.load(data / "images" / "ball3.nii.gz")
    maps = nib.load(tmp_path / "why" / "saliency.nii.gz")
    assert maps.shape == image.shape and np.asarray(maps.dataobj).max() > 0
    np.testing.assert_allclose(maps.affine, image.affine)
    assert (tmp_path / "why" / "contact_sheet.png").exists()
    facts = json.loads((tmp_path / "why" / "explain.json").read_text())
    axis = 2 if model == "unet" else 0
    assert facts["maps"]["gradcam"]["piece"]["size"][axis] == 1
    cam = np.asarray(nib.load(tmp_path / "why" / "gradcam.nii.gz").dataobj)
    stored = {2: 0, 0: 2}[axis]  # of SAR
    assert np.count_nonzero(np.moveaxis(cam, stored, 0).reshape(cam.shape[stored], -1).any(1)) <= 1
    assert facts["maps"]["uncertainty"]["members"] == 4
    assert ("attention" in facts["maps"]) == (model == "attention_unet")
    assert made.folder == tmp_path / "why"
