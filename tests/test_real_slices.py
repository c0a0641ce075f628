"""2D networks on real volumes, slice by slice, where these are at hand: minutes, so behind the mark `slow`."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import ulna
from ulna.system.reading import read_yaml

pytestmark = pytest.mark.slow
SMALL = ("planning.spatial_dims=2", "architecture.base_channels=8", "architecture.levels=4", "optimizer.lr=3e-3",
         "training.patience=100")  # fmt: skip
BY_HEART = ("augmentation.affine=0", "augmentation.quarter_turn=0", "augmentation.flip=0", "augmentation.intensity=0",
            "augmentation.gamma=0", "augmentation.noise=0", "augmentation.blur=0")  # fmt: skip


def twice(image, label, root):
    """One case under two ids: what validates was trained on, so a score is no evidence that anything was learned but it.

    The second is cut at one corner, for a split that parts two copies of an image is refused.
    """
    for folder, path in (("images", image), ("labels", label)):
        (root / folder).mkdir(parents=True)
        shutil.copy(path, root / folder / "a.nii.gz")
        nib.save(nib.load(path).slicer[24:, 16:, 8:], root / folder / "b.nii.gz")
    (root / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["b"]}))
    return root


def test_brain_tumours_in_two_channels(shared_data, tmp_path):
    data = shared_data / "brain_tumour"
    run = ulna.train(
        data, model="unet", out=tmp_path / "run", epochs=8,
        set=(*SMALL, "planning.neighbours=1", "training.steps_per_epoch=25", "planning.batch=8"),
    )  # fmt: skip
    plan = read_yaml(run.folder / "plan.yaml")
    assert (plan["slices"]["axis"], plan["slices"]["neighbours"], plan["in_channels"]) == (2, 1, 2)
    part = run.summary["evaluated_on"]
    assert run.summary[part]["cases"] == 1
    dice = run.summary[part]["classes"]["edema"]["dice"]["mean"]
    assert dice > 0.2, "far above what guesses reach; three patients are too few for more"
    masks = ulna.predict(run.folder, data, out=tmp_path / "masks", split=part)
    case = masks.cases[0]["case"]
    made, given = (nib.load(path / f"{case}.nii.gz") for path in (tmp_path / "masks", data / "labelsTr"))
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine)
    scores = ulna.evaluate(tmp_path / "masks", data)
    assert scores.summary["mean"]["dice"] == run.summary[part]["mean"]["dice"]
    assert ulna.evaluate(tmp_path / "masks", data, by="slice").summary["cases"] == 77


def test_four_channels_are_overfitted(shared_data, tmp_path):
    source = shared_data / "brain_tumour_4ch"
    name = "BRATS_HG0015.nii.gz"
    data = twice(source / "imagesTr" / name, source / "labelsTr" / name, tmp_path / "data")
    run = ulna.train(
        data, model="unet", out=tmp_path / "run", epochs=6,
        set=(*SMALL, *BY_HEART, "training.steps_per_epoch=30", "planning.batch=6", "planning.spacing=[2, 2]"),
    )  # fmt: skip
    plan = read_yaml(run.folder / "plan.yaml")
    assert plan["in_channels"] == 4 and plan["spacing"][:2] == [2, 2] and plan["kept_axes"] == [2]
    assert run.summary["val_dice"] > 0.35


def test_the_recipe_of_the_modular_unet_takes_a_real_volume(shared_data, tmp_path):
    """Four channels, cropped, whitened, three classes as one: as `ulna train Task01_BrainTumour --recipe laird`."""
    source = shared_data / "brain_tumour_4ch"
    name = "BRATS_HG0015.nii.gz"
    data = twice(source / "imagesTr" / name, source / "labelsTr" / name, tmp_path / "data")
    narrow = ("architecture.channels=[8, 16, 32, 64, 128]", "planning.batch=4", "optimizer.lr=3e-3",
              "training.steps_per_epoch=30", "planning.empty_slices=0.2")  # fmt: skip
    run = ulna.train(data, recipe="laird", out=tmp_path / "run", epochs=8, set=narrow)
    plan = read_yaml(run.folder / "plan.yaml")
    assert (plan["crop"], plan["in_channels"], plan["labels"]["names"]) == (
        [144, 144, None],
        4,
        ["background", "tumour"],
    )
    assert run.summary["val_iou"] > 0.25  # of a volume that it was trained on
    assert run.summary["val"]["cases"] == 138  # slices


def test_a_liver_is_overfitted(shared_data, tmp_path):
    folder = shared_data / "ct_liver" / "chaos_ct_set_3"
    data = twice(folder / "image.nii.gz", folder / "label_liver.nii.gz", tmp_path / "data")
    (data / "classes.json").write_text(json.dumps({"1": "liver"}))
    changes = ("training.steps_per_epoch=30", "planning.batch=6", "planning.spacing=[3, 3]", "planning.empty_slices=0.2",
               "planning.normalization=ct")  # fmt: skip
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=6, set=(*SMALL, *BY_HEART, *changes))
    plan = read_yaml(run.folder / "plan.yaml")
    assert plan["slices"]["axis"] == 2 and plan["slices"]["empty"] == 0.2
    assert run.summary["val_dice"] > 0.7
