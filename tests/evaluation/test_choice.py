"""Which measures apply: the rule, what is named, and what cannot be measured."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from ulna.cli import main as cli
from ulna.data.volume import Volume
from ulna.errors import DataError, UsageError
from ulna.evaluation.choice import choose, read_families
from ulna.evaluation.evaluate import evaluate
from ulna.evaluation.metrics import CALIBRATION, LESIONS, MEASURES, VOLUME
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Scores
from ulna.recipe import Labels

ONE = Labels(names=("background", "thing"))
IMAGE = Volume(np.zeros((1, 120, 120), np.float32), (1.0, 1.0), "px", None)
CT = Volume(np.zeros((1, 30, 30, 30), np.float32), (1.0, 1.0, 2.0), "mm", np.diag([1.0, 1, 2, 1]))


def grid(*spans, size=(120, 120)):
    mask = np.zeros(size, np.uint8)
    for span in spans:
        mask[tuple(slice(*part) for part in span)] = 1
    return mask


ORGAN = grid(((5, 110), (5, 110)))
CELLS = grid(*(((r, r + 8), (c, c + 8)) for r in (5, 40, 80) for c in (5, 60)))
VESSEL = grid(((50, 54), (2, 118)))
BLOB = grid(((10, 30), (10, 30)))


def families(references, volume=IMAGE, asked=("auto",), **options):
    return choose(asked, ONE, lambda: references, volume=volume, **options).families["thing"]


@pytest.mark.parametrize(
    ("reference", "more"), [(ORGAN, ("boundary",)), (CELLS, ("lesions",)), (VESSEL, ("cldice",)), (BLOB, ())]
)
def test_the_rule_looks_at_the_references(reference, more):
    assert families([reference] * 3) == ("overlap", "surface", *more)


def test_a_quarter_of_references_with_several_objects_makes_lesions():
    assert "lesions" in families([BLOB] * 3 + [CELLS])
    assert "lesions" not in families([BLOB] * 4 + [CELLS])


def test_volumes_in_mm_have_a_volume_error_and_no_boundary_iou():
    ball = grid(((2, 28), (2, 28), (2, 28)), size=(30, 30, 30))
    assert families([ball], CT) == ("overlap", "surface", "volume")


def test_what_is_named_is_measured_without_a_look_and_nothing_else():
    def never():
        raise AssertionError("the references were read")

    assert choose(("cldice",), ONE, never, volume=IMAGE).families["thing"] == ("overlap", "cldice")
    assert families([BLOB], asked=("auto", "cldice")) == ("overlap", "surface", "cldice")
    assert set(families([BLOB], asked=("all",))) == {"overlap", "surface", "lesions", "cldice", "boundary"}


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        (("volume",), {}, "no volumes with lengths in mm"),
        (("calibration",), {}, "no probabilities lie beside"),
        (("lesions",), {"by": "group"}, "cases are pooled"),
    ],
)
def test_what_cannot_be_measured_is_refused_or_left_out(asked, options, said):
    with pytest.raises(UsageError, match=said):
        families([BLOB], asked=asked, **options)
    assert families([BLOB], asked=asked, lenient=True, **options) == ("overlap",)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(UsageError, match="lesions"):
        read_families(["lesion"])
    assert read_families(["lesions, cldice", "lesions"]) == ("lesions", "cldice") and read_families([]) == ("auto",)


def test_columns_of_today_keep_their_places_and_new_ones_follow():
    scores = Scores(ONE, choice=choose(("auto",), ONE, lambda: [CELLS], volume=IMAGE))
    scores.add(Pair("a", CELLS, CELLS, IMAGE))
    scores.add(Pair("b", BLOB * 0, CELLS, IMAGE))
    done = scores.evaluation()
    assert tuple(done.rows[0]) == ("case", "class", *MEASURES, "tp", "fp", "fn", *LESIONS)
    assert done.summary["classes"]["thing"]["lesion_f1_50"]["mean"] == 0.5
    assert done.summary["measures"]["because"]["thing"] == {"lesions": "two objects or more in 1 of 1 references"}
    assert done.summary["lesions"]["thing"]["10"]["below 1024 px"]["references"] == 12


def test_structures_that_a_family_does_not_apply_to_have_no_value():
    two = Labels(names=("background", "cells", "vessel"))
    both = np.where(CELLS == 1, 1, np.where(VESSEL == 1, 2, 0)).astype(np.uint8)
    scores = Scores(two, choice=choose(("auto",), two, lambda: [both], volume=IMAGE))
    scores.add(Pair("a", both, both, IMAGE))
    cells, vessel = scores.evaluation().rows
    assert cells["pq"] == vessel["cldice"] == 1 and np.isnan(cells["cldice"]) and np.isnan(vessel["pq"])


# through files


def pictures(root, masks):
    root.mkdir(parents=True)
    for name, mask in masks.items():
        Image.fromarray(mask).save(root / f"{name}.png")
    return root


def test_probabilities_beside_the_masks_are_scored(tmp_path):
    references = pictures(tmp_path / "r", {"a": BLOB, "b": BLOB, "c": BLOB})
    masks = pictures(tmp_path / "p", {"a": BLOB, "b": BLOB})
    for name, p in (("a", 1.0), ("b", 0.6)):
        np.savez(masks / f"{name}_probabilities.npz", probabilities=(BLOB * p)[None].astype(np.float32))
    done = evaluate(masks, references, out=tmp_path / "out")
    assert tuple(done.rows[0])[-3:] == CALIBRATION
    a, b, c = done.rows
    assert a["brier"] == a["ece"] == a["ece_foreground"] == 0
    assert b["ece_foreground"] == pytest.approx(0.4) and b["brier"] == pytest.approx(0.16 * 400 / 14400)
    assert c["ece_foreground"] == 1  # a missing prediction is an empty one, and sure of it
    assert (tmp_path / "out" / "metrics.csv").read_text().splitlines()[0].endswith("fn,brier,ece,ece_foreground")
    evaluate(masks, references, out=tmp_path / "out", metrics=["surface"])  # files of before are ours
    np.savez(masks / "b_probabilities.npz", probabilities=np.zeros((3, 5, 5), np.float32))
    with pytest.raises(DataError, match=r"b_probabilities\.npz: holds maps of shape"):
        evaluate(masks, references)


def test_probabilities_of_volumes_come_back_from_nifti(tmp_path):
    ball = grid(((4, 20), (4, 20), (4, 20)), size=(30, 26, 24))
    affine = np.diag([-1.0, 1, 2, 1])
    for name in ("r", "p"):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(ball, affine), tmp_path / name / "a.nii.gz")
    maps = np.stack([1 - 0.75 * ball, 0.75 * ball], axis=-1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(maps[..., 1:], affine), tmp_path / "p" / "a_probabilities.nii.gz")
    (row,) = evaluate(tmp_path / "p", tmp_path / "r").rows
    assert row["ece_foreground"] == pytest.approx(0.25) and row["volume_error_ml"] == 0
    nibabel.save(nibabel.Nifti1Image(maps, affine), tmp_path / "p" / "a_probabilities.nii.gz")  # a softmax of two
    assert evaluate(tmp_path / "p", tmp_path / "r").rows[0]["ece_foreground"] == pytest.approx(0.25)
    assert set(VOLUME) < set(row)


def test_groups_of_a_field_have_scores_and_a_gap(tmp_path):
    half = BLOB.copy()
    half[20:] = 0
    names = [f"c{n}" for n in range(12)]
    references = pictures(tmp_path / "r", dict.fromkeys(names, BLOB))
    masks = pictures(tmp_path / "p", {name: BLOB if n < 6 else half for n, name in enumerate(names)})
    fields = {name: {"patient": f"p{n // 2}", "site": "A" if n < 6 else "B"} for n, name in enumerate(names[:-1])}
    (references / "groups.json").write_text(json.dumps({**fields, "c11": "p5"}))
    site = evaluate(masks, references, out=tmp_path / "out").summary["subgroups"]["site"]
    assert site["groups"]["A"]["dice"]["mean"] == 1 and site["groups"]["B"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert (site["groups"]["A"]["dice"]["n"], site["groups"]["B"]["dice"]["n"], site["cases_without"]) == (3, 3, 1)
    gap = site["gap"]["dice"]
    assert (gap["best"], gap["worst"]) == ("A", "B") and gap["difference"] == pytest.approx(1 / 3)
    assert gap["low"] == pytest.approx(1 / 3) and 0.05 < gap["p"] < 0.2  # 2 of 20 divisions of 6 patients
    assert site["gap"]["hd95"]["best"] == "A" and "fewer than 10" in site["note"]
    json.dumps(site, allow_nan=False)


def test_the_command_takes_families_and_says_why(tmp_path, capsys):
    references = pictures(tmp_path / "r", {"a": CELLS})
    masks = pictures(tmp_path / "p", {"a": CELLS})
    assert cli.run(["evaluate", str(masks), str(references)]) == 0
    said = capsys.readouterr().out
    assert "object F1" in said and "objects of" in said and "lesion F1" not in said and "found at 0.5" in said
    assert cli.run(["evaluate", str(masks), str(references), "--metrics", "cldice,boundary", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["hd95"] is None and row["cldice"] == row["boundary_iou"] == 1 and "pq" not in row
    assert cli.run(["evaluate", str(masks), str(references), "--metrics", "cldise"]) == 2
    assert "did you mean 'cldice'" in capsys.readouterr().err


def test_sites_are_printed_whatever_they_are_called(tmp_path, capsys):
    names = ["a", "b", "c", "d"]
    references = pictures(tmp_path / "r", dict.fromkeys(names, BLOB))
    masks = pictures(tmp_path / "p", {name: BLOB if name < "c" else BLOB.T * 0 for name in names})
    sites = {name: {"site\x1b[2J": "A" if name < "c" else "\x1b[31mB"} for name in names}
    (references / "groups.json").write_text(json.dumps(sites))
    assert cli.run(["evaluate", str(masks), str(references)]) == 0
    said = capsys.readouterr().out
    assert "gap of Dice between A and" in said and "\x1b[2J" not in said and "\x1b[31mB" not in said


def test_under_pseudonyms_sites_keep_their_names_and_probabilities_are_found(tmp_path):
    names = [f"Doe_{n}" for n in range(4)]
    references = pictures(tmp_path / "r", dict.fromkeys(names, BLOB))
    masks = pictures(tmp_path / "p", dict.fromkeys(names, BLOB))
    for name in names:
        np.savez(masks / f"{name}_probabilities.npz", probabilities=BLOB[None].astype(np.float32))
    fields = {name: {"patient": f"P {name}", "site": "AB"[n // 2]} for n, name in enumerate(names)}
    (references / "groups.json").write_text(json.dumps(fields))
    evaluate(masks, references, out=tmp_path / "out", pseudonymise=tmp_path / "key.json")
    text = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "Doe" not in text and summary["subgroups"]["site"]["groups"].keys() == {"A", "B"}
    assert summary["mean"]["brier"]["mean"] == 0
