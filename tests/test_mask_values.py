"""Pictures of masks come back in the values that the training labels had; `.mask` and npz hold class indices."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_predict import run_folder
from tests.miniatures import bowl
from tests.training.tiny import TINY
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import Labels, Plan, Recipe, Training, from_yaml, to_yaml


def drawn(root, values, suffix="png", cases=6):
    """Pairs of noise with a bright square; the label of case n holds `values[n % len(values)]` there."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(cases):
        y, x = rng.integers(2, 14, 2)
        inside = np.zeros((32, 32), np.uint8)
        inside[y : y + 14, x : x + 14] = values[number % len(values)]
        image = np.clip(60 + 120 * (inside > 0) + rng.normal(0, 8, inside.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"c{number}.{suffix}")
        Image.fromarray(inside).save(root / "labels" / f"c{number}.{suffix}")
    return root


def planned(root, **files):
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    data = read_training_data(Dataset.from_folder(root), Training())
    return plan_training(data, Recipe(model="unet")).plan


def values_of(folder):
    """Of all masks together, as a viewer sees them."""
    masks = [Image.open(path) for path in sorted(folder.iterdir()) if path.suffix in (".png", ".tif", ".bmp")]
    assert masks
    return {int(value) for mask in masks for value in np.unique(np.asarray(mask))}


@pytest.mark.share(3)
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_0_and_255_come_back_and_are_read_again(tmp_path, suffix):
    data = drawn(tmp_path / "data", [255], suffix)
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=10, set=TINY)
    ulna.predict(run.folder, data / "images", out=tmp_path / "masks")
    assert values_of(tmp_path / "masks") == {0, 255}
    result = ulna.load(run.folder)(data / "images" / f"c0.{suffix}")
    assert set(np.unique(result.mask)) == {0, 1}
    assert np.array_equal(np.asarray(Image.open(result.save(tmp_path / "saved" / "c0"))) == 255, result.mask == 1)

    dice = ulna.evaluate(tmp_path / "masks", data).summary["mean"]["dice"]["mean"]
    assert dice > 0.5
    for name, factor in (("of 0 and 255", 1), ("of 0 and 1", 255)):  # masks of others
        folder = tmp_path / name
        folder.mkdir()
        for path in (tmp_path / "masks").glob(f"*{'.tif' if suffix == 'tif' else '.png'}"):
            Image.fromarray(np.asarray(Image.open(path)) // factor).save(folder / path.name)
        assert ulna.evaluate(folder, data).summary["mean"]["dice"]["mean"] == dice
        again = tmp_path / f"{name} again"
        shutil.copytree(data / "images", again / "images")
        shutil.copytree(folder, again / "labels")
        assert planned(again).mask_values == ((0, 255) if factor == 1 else (0, 1))


def test_labels_of_0_and_255_beside_0_and_1_give_classes_with_a_note(tmp_path, caplog):
    plan = planned(drawn(tmp_path / "data", [255, 1]))
    assert (
        plan.mask_values is None and "training labels hold 0 and 255, the others 0 and 1" in plan.reasons["mask_values"]
    )
    run = run_folder(tmp_path / "run", 0, reasons=plan.reasons)
    caplog.set_level("INFO")
    ulna.predict(run, tmp_path / "data" / "images", out=tmp_path / "masks")
    assert values_of(tmp_path / "masks") <= {0, 1}
    assert any("mask files hold class indices" in message for message in caplog.messages)


def test_a_run_of_an_earlier_version_predicts_as_it_did(tmp_path, caplog):
    images = drawn(tmp_path / "data", [255]) / "images"
    run = run_folder(tmp_path / "run", 0)
    assert "mask_values" not in (run / "plan.yaml").read_text()
    caplog.set_level("INFO")
    ulna.predict(run, images, out=tmp_path / "masks")
    assert values_of(tmp_path / "masks") <= {0, 1}
    assert any("kept no values of the training labels" in message for message in caplog.messages)
    # as what an earlier version wrote down
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    del facts["mask_values"]
    (tmp_path / "masks" / "predict.json").write_text(json.dumps(facts))
    assert ulna.evaluate(tmp_path / "masks", tmp_path / "data").summary["cases"] == 6


@pytest.mark.parametrize("plan", ["of other values", "of an earlier version"])
def test_a_plan_from_a_file_takes_the_values_of_the_labels_it_trains_on(tmp_path, plan):
    data = drawn(tmp_path / "data", [255])
    made = planned(data)
    other = made.replaced(
        mask_values=(0, 1) if plan == "of other values" else None, colour=True, reasons={"mask_values": "x"}
    )
    file = write(tmp_path / "plan.yaml", other)
    found = read_training_data(Dataset.from_folder(data), Training())
    again = plan_training(found, Recipe(model="unet"), given=from_yaml(Plan, file)).plan
    assert (again.mask_values, again.colour) == ((0, 255), False)
    assert again.reasons["mask_values"] == made.reasons["mask_values"]


def test_an_npz_holds_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 24, 32), np.uint8)
    np.savez(tmp_path / "new.npz", images=images)
    run = run_folder(tmp_path / "run", 0, mask_values=(0, 255))
    ulna.predict(run, tmp_path / "new.npz", out=tmp_path / "masks")
    masks = np.load(tmp_path / "masks" / "new.npz")["masks"]
    assert set(np.unique(masks)) == {0, 1}


@pytest.mark.parametrize(
    ("values", "classes", "wanted"),
    [
        ([1], None, (0, 1)),
        ([1, 2], ["a", "b"], (0, 1, 2)),
        ([128, 255], {"labels": {"a": [255], "b": [128]}}, (0, 255, 128)),
        ([1, 2, 3], {"labels": {"a": [1, 2], "b": [3]}}, None),
        ([1, 2], {"labels": {"background": [0, 1], "a": [2]}}, (0, 2)),
        ([1, 2], {"labels": {"1": "cell"}, "instances": True}, None),
        ([255], {"labels": {"1": "cell"}}, (0, 255)),
    ],
)
def test_values_are_those_of_classes_that_have_one(tmp_path, values, classes, wanted):
    root = drawn(tmp_path / "data", values)
    plan = planned(root, classes=classes) if classes else planned(root)
    assert plan.mask_values == wanted and plan.reasons["mask_values"]
    assert from_yaml(Plan, write(tmp_path / "plan.yaml", plan)) == plan


def write(path, plan):
    path.write_text(to_yaml(plan))
    return path


def test_masks_of_objects_in_a_folder_a_case_come_back_as_they_are_drawn(tmp_path):
    assert planned(bowl(tmp_path / "data", size=(32, 32))).mask_values == (0, 255)


def test_a_mask_of_listed_values_reads_back_as_its_classes(tmp_path):
    """What `predict` writes and `evaluate` reads is the same, also where a value is the index of another class."""
    labels = Labels(names=("background", "a", "b"), values=((2,), (1,)))
    run = run_folder(tmp_path / "run", 3, labels=labels, mask_values=(0, 2, 1))
    images = drawn(tmp_path / "data", [1, 2]) / "images"
    ulna.predict(run, images, out=tmp_path / "masks")
    result = ulna.load(run)(images / "c0.png")
    stored = read_labels(Source(tmp_path / "masks" / "c0.png")).array[0]
    assert np.array_equal(stored, np.array([0, 2, 1])[result.mask]) and len(np.unique(result.mask)) > 1
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"a": [2], "b": [1]}))
    for path in (tmp_path / "masks").glob("*.png"):  # as references: the same values, so nothing differs
        shutil.copy(path, tmp_path / "data" / "labels")
    assert ulna.evaluate(tmp_path / "masks", tmp_path / "data").summary["mean"]["dice"]["mean"] == 1.0


@pytest.mark.parametrize("damaged", [[], [0], [0, -1], [0, 0], [0, 1, 2], [0, "1"], "0, 255", 3, {"a": 1}])
def test_values_that_are_none_are_no_reason_to_read_other_masks(tmp_path, damaged):
    images = drawn(tmp_path / "data", [255]) / "images"
    ulna.predict(run_folder(tmp_path / "run", 0, mask_values=(0, 255)), images, out=tmp_path / "masks")
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    (tmp_path / "masks" / "predict.json").write_text(json.dumps(facts | {"mask_values": damaged}))
    with pytest.raises(UsageError, match=r"predict\.json: mask_values is .*expected 2 different whole numbers"):
        ulna.evaluate(tmp_path / "masks", tmp_path / "data")


def test_a_background_of_another_value_is_read_again(tmp_path):
    """0 is then what nobody knows the class of, and stands in no mask."""
    labels = Labels(names=("background", "a"), values=((1,),), background=(255,), ignore=(0,))
    run = run_folder(tmp_path / "run", 3, labels=labels, mask_values=(255, 1))
    data = drawn(tmp_path / "data", [1])
    ulna.predict(run, data / "images", out=tmp_path / "masks")
    assert values_of(tmp_path / "masks") == {1, 255}
    (data / "classes.json").write_text(json.dumps({"labels": {"background": [255], "a": [1]}, "ignore": 0}))
    for path in (tmp_path / "masks").glob("*.png"):
        shutil.copy(path, data / "labels")
    assert ulna.evaluate(tmp_path / "masks", data).summary["mean"]["dice"]["mean"] == 1.0


def test_a_value_that_no_file_holds_is_told_with_the_file(tmp_path):
    labels = Labels(names=("background", "a", "b"), values=((128,), (255,)))
    run = run_folder(tmp_path / "run", 3, labels=labels, mask_values=(0, 128, 255))
    data = drawn(tmp_path / "data", [128, 255])
    ulna.predict(run, data / "images", out=tmp_path / "masks")
    told = tmp_path / "masks" / "predict.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"mask_values": [0, 1, 1 << 40]}))
    with pytest.raises(UsageError, match=r"predict\.json"):
        ulna.evaluate(tmp_path / "masks", data)


def test_the_picture_that_a_dicom_file_without_a_place_gets_holds_them_too(tmp_path):
    from tests import dicom_series as dicom  # skips where pydicom is absent

    made = dicom.dataset(dicom.ramp(1, 32, 32)[0], modality="CR")
    del made.ImagePositionPatient, made.ImageOrientationPatient, made.FrameOfReferenceUID
    image = dicom.save(made, tmp_path / "a.dcm")
    segment = ulna.load(run_folder(tmp_path / "run", 3, mask_values=(0, 255)))
    result = segment(image)
    saved = result.save(tmp_path / "mask")
    assert saved.suffix == ".tif" and result.mask.any()
    assert np.array_equal(np.asarray(Image.open(saved)), 255 * result.mask)


def test_networks_of_labels_with_other_values_write_class_indices_together(tmp_path):
    images = drawn(tmp_path / "data", [255]) / "images"
    runs = [run_folder(tmp_path / f"run{top}", 0, mask_values=(0, top)) for top in (255, 1)]
    ulna.predict(runs, images, out=tmp_path / "masks")
    assert values_of(tmp_path / "masks") == {0, 1}
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    assert facts["mask_values"] is None
    assert any("trained on hold different values" in note for note in facts["notes"])
