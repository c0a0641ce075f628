"""The recipes of the papers' protocols: each loads, builds its network and says what it reproduces."""

import nibabel
import numpy as np
import pytest

from tests.places import ROOT
from tests.training.tiny import rows_of
from ulna.networks.build import validate
from ulna.networks.catalog import NAMED
from ulna.planning.choosing import choose
from ulna.training.train import train

FOLDER = ROOT / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_what_it_reproduces(path):
    recipe = choose(model=None, recipe=path)
    assert recipe.model in NAMED
    entry = NAMED[recipe.model]
    validate(recipe.architecture, in_channels=entry.input[0], classes=entry.maps, spatial_dims=len(entry.input) - 1)
    head = path.read_text().split("\n\n")[0].partition("\nmodel:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "Published" in head
    assert "ulna train" in head or "ulna compare" in head


@pytest.mark.parametrize("task", ["nuclei", "polyps"])
def test_the_sdu_net_recipes_hold_table_5(task):
    path = FOLDER / f"carvalho_{task}.yaml"
    for network in ("unet", "unetpp", "sdu_net", "sdnu_net"):
        recipe = choose(model=f"carvalho/{network}_{task}", recipe=path)
        assert recipe.optimizer.lr == {"nuclei": 1e-3, "polyps": 1e-4}[task]
        assert recipe.planning.batch * recipe.training.accumulate == 20 * 4
        assert recipe.architecture == NAMED[f"carvalho/{network}_{task}"].architecture


@pytest.mark.parametrize("name", [name for name in NAMED if name.startswith("laird/")])
def test_the_modular_protocol_is_that_of_the_paper_for_every_row(name):
    assert name in (FOLDER / "laird.yaml").read_text(encoding="utf-8")
    recipe = choose(model=name, recipe=FOLDER / "laird.yaml")
    assert recipe.architecture == NAMED[name].architecture
    assert (recipe.optimizer.kind, recipe.optimizer.lr, recipe.planning.batch) == ("adam", 1e-4, 40)
    assert (recipe.training.epochs, recipe.loss.kind, recipe.planning.patch) == (20, "dice", (144, 144))


@pytest.mark.slow
def test_the_modular_protocol_runs_on_slices_of_a_real_volume(shared_data, tmp_path):
    source = shared_data / "brain_tumour_4ch"
    image = np.asanyarray(nibabel.load(source / "imagesTr" / "BRATS_HG0015.nii.gz").dataobj).astype(np.float32)
    labels = np.asanyarray(nibabel.load(source / "labelsTr" / "BRATS_HG0015.nii.gz").dataobj) > 0
    with_tumour = np.flatnonzero(labels.sum((0, 1)) > 300)
    train_slices, val_slices = with_tumour[35:59:3], with_tumour[15:21:5]  # apart: neighbours count as copies
    r, c = ((n - 144) // 2 for n in image.shape[:2])
    for name, chosen in (("train", train_slices), ("val", val_slices)):
        rows, columns = slice(max(r, 0), max(r, 0) + 144), slice(max(c, 0), max(c, 0) + 144)
        images = np.stack([image[rows, columns, z] for z in chosen])
        masks = np.stack([labels[rows, columns, z] for z in chosen]).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, masks=masks)
    (tmp_path / "data").mkdir()
    for name in ("train", "val"):
        (tmp_path / f"{name}.npz").rename(tmp_path / "data" / f"{name}.npz")
    small = (
        "architecture.channels=[8, 16, 32, 64, 128]",
        "planning.batch=2",
        "optimizer.lr=3e-3",
        "training.min_steps=8",
    )
    run = train(tmp_path / "data", recipe=FOLDER / "laird.yaml", epochs=6, out=tmp_path / "run", set=small)
    assert max(float(row["val_iou"]) for row in rows_of(run.folder)) > 0.5  # slices of one patient: it can only be easy


@pytest.mark.parametrize("network", ["fcn", "unet", "unetpp", "attention_unet", "omega_net"])
def test_the_omega_net_recipe_fits_every_row_of_table_1(network):
    path = FOLDER / "wang_omega_net.yaml"
    recipe = choose(model=f"wang/{network}", recipe=path)
    assert recipe.optimizer.weight_decay == 1.5e-4
    assert recipe.loss.heads == ({"aux0": 1, "main0": 10} if network == "omega_net" else "equal")


@pytest.mark.parametrize("task", ["lung", "pancreas"])
def test_the_implicit_unet_recipes_fit_both_rows_of_table_1(task):
    path = FOLDER / f"marimont_{task}.yaml"
    implicit, unet = (choose(model=f"marimont/{name}", recipe=path) for name in ("implicit_unet", "unet"))
    assert implicit.training.epochs == unet.training.epochs == {"lung": 2000, "pancreas": 800}[task]
    assert (implicit.planning.patch, implicit.planning.batch) == ((160, 160, 96), 6)
    assert (implicit.points.count, implicit.points.alpha, implicit.points.sigma) == (30_000, 0.5, 5.0)
    assert (unet.points.count, unet.loss.heads) == (None, "halving")
