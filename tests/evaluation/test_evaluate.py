"""Predictions against references: what is counted, what is refused."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

import ulna
from ulna.cli import main as cli
from ulna.errors import DataError, UsageError
from ulna.evaluation.evaluate import evaluate
from ulna.evaluation.intervals import mean_interval


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
    assert rows[0]["ppv"] is rows[0]["dice"] is rows[0]["hd95"] is None
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


def never_found(tmp_path):
    """Class 1 is found in all of 5 cases; class 2 stands in one and is never found."""
    references, predictions = {}, {}
    for number in range(5):
        labels = square(0, shape=(40, 40)) + square(20, value=2 if number == 0 else 0, shape=(40, 40))
        references[f"c{number}"] = labels
        predictions[f"c{number}"] = np.where(labels == 2, 0, labels).astype(np.uint8)
    return folder(tmp_path / "p", predictions), folder(tmp_path / "r", references)


def test_a_class_that_is_never_found_scores_0_however_many_cases_lack_it(tmp_path, capsys):
    predictions, references = never_found(tmp_path)
    assert cli.run(["evaluate", str(predictions), str(references), "--out", str(tmp_path / "s")]) == 0
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    second = summary["classes"]["class 2"]
    assert [second[name]["mean"] for name in ("dice", "iou", "ppv", "sensitivity", "nsd")] == [0] * 5
    assert (second["n"], second["both_empty"], second["dice"]["n"]) == (1, 4, 1)
    assert summary["mean"]["dice"]["mean"] == pytest.approx((0.5 + 4) / 5)
    assert (summary["mean"]["n"], summary["mean"]["both_empty"]) == (5, 0)
    rows = [line.split(",") for line in (tmp_path / "s" / "metrics.csv").read_text().splitlines()]
    assert [row[2] for row in rows if row[1] == "class 2"] == ["0.0", *["nan"] * 4]
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["n", "5", "1", "5"] in shown
    assert ["both", "empty", "0", "4", "0"] in shown


def test_a_case_without_any_structure_is_left_out_and_counted(tmp_path):
    empty = np.zeros((24, 32), np.uint8)
    references = folder(tmp_path / "r", {"a": square(4), "b": empty, "c": empty})
    predictions = folder(tmp_path / "p", {"a": square(4), "b": empty, "c": square(8)})
    summary = evaluate(predictions, references).summary
    for of in (summary["mean"], summary["classes"]["foreground"]):
        assert of["dice"]["mean"] == 0.5  # what is invented counts: 1 and 0
        assert (of["dice"]["n"], of["sensitivity"]["n"], of["both_empty"]) == (2, 1, 1)
    assert np.isnan(evaluate(predictions, references).case_dice("b"))


def test_the_papers_rule_comes_from_the_recipe_alone(tmp_path):
    empty = np.zeros((24, 32), np.uint8)
    references = folder(tmp_path / "r", {"a": square(4), "b": empty})
    predictions = folder(tmp_path / "p", {"a": np.zeros_like(empty), "b": empty})
    labels = {"names": ["background", "nucleus"]}
    rows = [{"case": name, "file": f"{name}.png"} for name in "ab"]
    (predictions / "predict.json").write_text(json.dumps({"labels": labels, "cases": rows, "empty_score": 1.0}))
    summary = evaluate(predictions, references).summary
    assert [summary["mean"][name]["mean"] for name in ("dice", "iou", "nsd")] == [0.5] * 3
    assert summary["empty_score"] == 1.0
    assert summary["mean"]["n"] == 2
    (predictions / "predict.json").write_text(json.dumps({"labels": labels, "cases": rows}))
    assert evaluate(predictions, references).summary["mean"]["dice"]["mean"] == 0


def test_what_predict_says_is_not_applied_to_a_file_beside_it_that_it_does_not_list(tmp_path):
    empty = np.zeros((24, 32), np.uint8)
    references = folder(tmp_path / "r", {"a": square(4), "b": square(4), "c": empty})
    folder(tmp_path / "p", {"a": square(4)})
    np.savez(tmp_path / "p" / "mine.npz", masks=np.stack([square(4), square(8), empty]), ids=["a", "b", "c"])
    labels = {"names": ["background", "nucleus"]}
    said = {"labels": labels, "cases": [{"case": "a", "file": "a.png"}], "asked": ["a"], "empty_score": 1.0}
    (tmp_path / "p" / "predict.json").write_text(json.dumps(said))
    summary = evaluate(tmp_path / "p" / "mine.npz", references).summary
    assert summary["cases"] == 3
    assert "empty_score" not in summary
    assert summary["mean"]["dice"]["mean"] == 0.75
    assert list(summary["classes"]) == ["foreground"]
    assert evaluate(tmp_path / "p", references).summary["cases"] == 1


def test_intervals_are_the_corrected_ones_and_few_cases_are_marked(tmp_path, capsys):
    masks = {f"{n:02}": square(4, size=4 + n % 5) for n in range(30)}
    references = folder(tmp_path / "r", masks)
    predictions = folder(tmp_path / "p", {name: square(4) for name in masks})
    scores = evaluate(predictions, references)
    dice = scores.summary["mean"]["dice"]
    assert (dice["low"], dice["high"]) == mean_interval([row["dice"] for row in scores.rows])
    assert "interval_note" not in scores.summary
    few = folder(tmp_path / "few", dict(list(masks.items())[:9]))
    assert cli.run(["evaluate", str(predictions), str(few), "--quiet"]) == 0
    assert "fewer than 10 cases are not to be trusted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("where", ["r", "d", "d/labels"])
def test_the_references_are_no_place_for_scores(tmp_path, where):
    references = folder(tmp_path / "r", {"a": square(4)})
    folder(tmp_path / "d" / "labels", {"a": square(4)})
    folder(tmp_path / "d" / "images", {"a": square(4)})
    with pytest.raises(UsageError, match="choose another --out"):
        evaluate(folder(tmp_path / "p", {"a": square(4)}), references, out=tmp_path / where)


def test_scores_replace_earlier_scores_and_nothing_else(tmp_path):
    references = folder(tmp_path / "r", {"a": square(4)})
    predictions, out = folder(tmp_path / "p", {"a": square(4)}), tmp_path / "out"
    for _ in range(2):
        evaluate(predictions, references, out=out)
    for name in ("summary.json", "metrics.csv"):
        kept = (out / name).read_bytes()
        (out / name).write_text("{}")
        with pytest.raises(UsageError, match=f"{name} is not written by ulna"):
            evaluate(predictions, references, out=out)
        assert (out / name).read_text() == "{}"
        (out / name).write_bytes(kept)


def test_a_summary_that_goes_too_deep_is_not_ulnas_own(tmp_path):
    references, out = folder(tmp_path / "r", {"a": square(4)}), tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text("[" * 200_000)
    with pytest.raises(UsageError, match=r"summary\.json is not written by ulna"):
        evaluate(folder(tmp_path / "p", {"a": square(4)}), references, out=out)


def test_masks_whose_names_hold_dots_stay_apart(tmp_path):
    names = ["1.2.840.0175", "1.2.840.0176", "patient.1", "patient.2"]
    masks = {name: square(row) for row, name in enumerate(names)}
    scores = evaluate(folder(tmp_path / "p", masks), folder(tmp_path / "r", masks))
    assert sorted(row["case"] for row in scores.rows) == names


def tagged(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def test_orientation_tags_that_differ_are_told_and_not_a_silent_zero(tmp_path, caplog):
    """A label map without a tag on the stored pixels of a picture with one: as large, and turned by 180 degrees."""
    references = folder(tmp_path / "r", {name: square(4) for name in "abc"})
    predictions = folder(tmp_path / "p", {"c": square(4)})
    tagged(predictions / "a.png", square(4), 3)
    tagged(predictions / "b.png", square(4), 1)
    scores = evaluate(predictions, references, out=tmp_path / "out")
    assert [row["dice"] for row in scores.rows] == [0.0, 1.0, 1.0]
    assert scores.summary["orientation_tags_differ"] == ["a"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == scores.summary
    assert "masks whose orientation tag differs from that of their reference (1): a;" in caplog.text
    assert "give it the tag of the image" in caplog.text


def test_equal_orientation_tags_are_not_told(tmp_path, caplog):
    for name in "rp":
        (tmp_path / name).mkdir()
        tagged(tmp_path / name / "a.png", square(4), 3)
    scores = evaluate(tmp_path / "p", tmp_path / "r")
    assert scores.rows[0]["dice"] == 1 and "orientation_tags_differ" not in scores.summary
    assert "orientation" not in caplog.text
