"""Predictions against references: what is counted, what is refused."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

import ulna
from ulna.errors import DataError, UsageError
from ulna.evaluation import evaluate


def square(row, size=8, shape=(24, 32), value=1):
    mask = np.zeros(shape, np.uint8)
    mask[row : row + size, 4 : 4 + size] = value
    return mask


def folder(root, masks):
    root.mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(mask).save(root / f"{name}.png")
    return root


def test_hand_made_values(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4), "b": square(4)})
    predictions = folder(tmp_path / "p", {"a": square(4), "b": square(8)})
    scores = evaluate(predictions, references, out=tmp_path / "out")
    assert [row["dice"] for row in scores.rows] == [1.0, 0.5]  # half of the square is hit
    assert scores.summary["mean"]["dice"]["mean"] == 0.75
    assert scores.summary["pooled"]["foreground"]["iou"] == pytest.approx((64 + 32) / (64 + 96))
    assert (scores.summary["unit"], scores.summary["tolerance"], scores.summary["tolerance_unit"]) == ("px", 2.0, "px")
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == scores.summary


def test_a_missing_prediction_counts_as_empty_and_lowers_every_mean(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4), "b": square(4)})
    scores = evaluate(folder(tmp_path / "p", {"a": square(4)}), references)
    assert scores.summary["missing"] == ["b"]
    assert scores.summary["mean"]["dice"]["mean"] == 0.5
    assert scores.summary["mean"]["nsd"]["mean"] == 0.5
    assert scores.summary["mean"]["hd95"]["mean"] == pytest.approx((24**2 + 32**2) ** 0.5 / 2)


def test_extra_predictions_are_left_out(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4)})
    scores = evaluate(folder(tmp_path / "p", {"a": square(4), "z": square(8)}), references)
    assert scores.summary["cases"] == 1


def test_undefined_values_are_null_in_json(tmp_path):
    empty = np.zeros((8, 8), np.uint8)
    references = folder(tmp_path / "r", {"a": empty, "b": square(0, 4, (8, 8))})
    scores = evaluate(folder(tmp_path / "p", {"a": empty, "b": empty}), references)
    rows = scores.to_json()["rows"]
    assert rows[0]["ppv"] is None
    assert rows[1]["ppv"] == 0.0
    json.dumps(scores.to_json(), allow_nan=False)


def test_all_pairs_that_do_not_fit_are_named_at_once(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4), "b": square(4), "c": square(4)})
    wrong = {"a": square(4), "b": square(4, shape=(24, 30)), "c": square(4, shape=(20, 32))}
    with pytest.raises(DataError) as error:
        evaluate(folder(tmp_path / "p", wrong), references)
    assert [problem.file.rsplit("/", 1)[1] for problem in error.value.problems] == ["b.png", "c.png"]


def test_masks_on_another_grid_are_refused(tmp_path):
    mask = np.zeros((6, 7, 5), np.uint8)
    mask[1:4, 2:5, 1:3] = 1
    for name, affine in (("r", np.diag([1.0, 1, 2, 1])), ("p", np.diag([-1.0, -1, 2, 1]))):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / name / "case.nii.gz")
    with pytest.raises(DataError, match="another orientation"):
        evaluate(tmp_path / "p", tmp_path / "r")


def test_volumes_are_measured_in_mm(tmp_path):
    reference, prediction = np.zeros((2, 12, 12, 12), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    prediction[2:6, 2:6, 3:7] = 1  # one voxel of 3 mm along the last axis
    for name, mask in (("r", reference), ("p", prediction)):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([1.0, 1, 3, 1])), tmp_path / name / "case.nii")
    scores = evaluate(tmp_path / "p", tmp_path / "r")
    assert scores.rows[0]["hd95"] == pytest.approx(3.0)
    assert (scores.summary["unit"], scores.summary["tolerance"]) == ("mm", 1.0)


def test_classes_are_named_by_the_data_set(tmp_path):
    root = tmp_path / "d"
    masks = {"a": square(4, value=1) + square(14, value=2)}
    folder(root / "labels", masks)
    folder(root / "images", {"a": square(2, value=200)})
    (root / "classes.json").write_text('{"1": "nucleus", "2": "vessel"}')
    scores = evaluate(folder(tmp_path / "p", masks), root)
    assert [row["class"] for row in scores.rows] == ["nucleus", "vessel"]
    assert scores.summary["mean"]["dice"]["mean"] == 1.0


def test_nothing_in_common_names_both_sides(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4)})
    with pytest.raises(UsageError, match="masks are z, references a"):
        evaluate(folder(tmp_path / "p", {"z": square(4)}), references)


def test_a_run_folder_keeps_its_own_summary(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4)})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(UsageError, match="is a run folder"):
        ulna.evaluate(str(references), str(references), out=str(tmp_path / "run"))
