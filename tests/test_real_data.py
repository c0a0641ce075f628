"""The whole path on real images, where they are at hand: minutes, so behind the mark `slow`."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest

import ulna

pytestmark = pytest.mark.slow


def test_nuclei_as_arrays(shared_data, tmp_path):
    data = shared_data / "nuclei96"
    small = ("architecture.base_channels=8", "training.samples_per_epoch=240")
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=6, set=small)
    assert run.summary["val_dice"] > 0.7
    masks = ulna.predict(run.folder, data / "test_public.npz", out=tmp_path / "masks")
    assert len(masks.cases) == 34
    with np.load(tmp_path / "masks" / "test_public.npz") as arrays:
        assert arrays["masks"].shape == (34, 96, 96)
    scores = ulna.evaluate(tmp_path / "masks", data / "test_public.npz")
    assert scores.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])


def test_hippocampus_volumes(shared_data, tmp_path):
    source, data = shared_data / "hippocampus", tmp_path / "data"
    about = json.loads((source / "dataset.json").read_text())
    about["training"] = about["training"][:10]
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
        for entry in about["training"]:
            name = entry["image"].rsplit("/", 1)[1]
            shutil.copy(source / folder / name, data / folder / name)
    (data / "dataset.json").write_text(json.dumps(about))
    small = ("architecture.base_channels=8", "training.min_steps=20", "optimizer.lr=3e-3")
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=3, set=small)
    part = run.summary["evaluated_on"]
    rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    assert float(rows[-1]["train_loss"]) < 0.9 * float(rows[0]["train_loss"])
    assert set(run.summary[part]["classes"]) == {"Anterior", "Posterior"}
    masks = ulna.predict(run.folder, data, out=tmp_path / "masks", split=part)
    case = masks.cases[0]["case"]
    made, given = (nibabel.load(path / f"{case}.nii.gz") for path in (tmp_path / "masks", data / "labelsTr"))
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine)
    assert np.asarray(made.dataobj).dtype == np.uint8
