"""What is scored as one: cases, the slices of volumes, groups of cases."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import ulna
from tests.data.pipeline.test_orientation import stored_as
from tests.plans import make
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.evaluation.metrics import score
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Scores
from ulna.evaluation.units import Across, pooled, slices_of, stored_axis
from ulna.recipe import Labels, Slices


def volume_of(size, spacing=(1.0, 1.0, 1.0), affine=None, unit="mm"):
    return Volume(np.zeros((1, *size), np.float32), spacing, unit, affine)


def maps(size, seed):
    rng = np.random.default_rng(seed)
    one = rng.random(size) < 0.3
    one[..., 0] = False
    return one.astype(np.uint8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_slice_is_scored_as_an_image(axis):
    size, spacing = (6, 7, 5), (1.0, 2.0, 3.0)
    prediction, reference = maps(size, 0), maps(size, 1)
    scores = Scores(Labels(), by="slice", across=Across(axis, canonical=False))
    scores.add(Pair("a", prediction, reference, volume_of(size, spacing)))
    found = scores.evaluation()
    plane = tuple(step for other, step in enumerate(spacing) if other != axis)
    assert len(found.rows) == size[axis]
    for number, row in enumerate(found.rows):
        cut = [np.take(one, number, axis) > 0 for one in (prediction, reference)]
        wanted = score(*cut, spacing=plane, tolerance=2 * max(plane))
        assert (row["case"], row["slice"]) == ("a", number)
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, nan_ok=True)
    known = [row["dice"] for row in found.rows if not math.isnan(row["dice"])]
    assert found.summary["mean"]["dice"]["mean"] == pytest.approx(np.mean(known))
    assert (found.summary["by"], found.summary["cases"], found.summary["images"]) == ("slice", size[axis], 1)
    assert "too narrow" in found.summary["interval_note"]


@pytest.mark.parametrize(
    ("letters", "axis", "stored"), [("RAS", 2, 2), ("SAR", 2, 0), ("SAR", 0, 2), ("ASL", 1, 0), ("LPI", 1, 1)]
)
def test_slices_of_a_run_lie_across_its_axis_however_a_file_is_stored(letters, axis, stored):
    array, affine = stored_as(np.zeros((4, 5, 6)), np.eye(4), letters)
    volume = volume_of(array.shape, affine=affine)
    assert stored_axis(volume, Across(axis, canonical=True)) == stored
    assert stored_axis(volume, Across(axis, canonical=False)) == axis


def test_without_a_run_slices_lie_across_the_largest_spacing():
    assert stored_axis(volume_of((4, 5, 6), (1.0, 3.0, 1.0)), None) == 1
    assert stored_axis(volume_of((4, 5, 6)), None) == 0
    assert stored_axis(volume_of((4, 5, 6), affine=np.diag([1.0, 1, 1, 1])), None) == 2
    assert Across.of(make()) is None
    plan = make(spatial_dims=2, spacing=(1.0,) * 3, slices=Slices(axis=1, full_count=1, empty_count=0))
    assert Across.of(plan) == Across(1, canonical=False)
    assert Across.read({"axis": 1, "canonical": True}) == Across(1, True)
    assert Across.read(None) is Across.read({"axis": 7, "canonical": True}) is Across.read({"axis": "x"}) is None


def test_overlapping_classes_by_slice():
    prediction, reference = (np.stack([maps((4, 5, 6), seed), maps((4, 5, 6), seed + 7)]) for seed in (0, 1))
    scores = Scores(Labels(names=("a", "b"), multilabel=True), by="slice", across=Across(0, canonical=False))
    scores.add(Pair("x", prediction, reference, volume_of((4, 5, 6))))
    rows = scores.evaluation().rows
    assert [(row["slice"], row["class"]) for row in rows] == [(n, name) for n in range(4) for name in "ab"]


def test_2d_images_have_no_slices():
    flat = Volume(np.zeros((1, 4, 4), np.float32), (1.0, 1.0))
    with pytest.raises(
        UsageError, match=r"--by slice: an image is 2D and has no slices; leave it out, or .*--by group"
    ):
        list(slices_of(np.zeros((4, 4)), np.zeros((4, 4)), flat, None))


def test_groups_are_scored_by_their_summed_counts():
    rows = [
        {"case": case, "class": name, "tp": tp, "fp": fp, "fn": fn}
        for case, name, tp, fp, fn in [
            ("a0", "x", 3, 1, 0), ("a0", "y", 0, 0, 0), ("a1", "x", 1, 0, 5), ("a1", "y", 0, 0, 0), ("b0", "x", 2, 0, 0),
            ("b0", "y", 1, 1, 1), ("c", "x", 0, 0, 0), ("c", "y", 0, 2, 0),
        ]
    ]  # fmt: skip
    found = {(r["case"], r["class"]): r for r in pooled(rows, {"a0": "a", "a1": "a", "b0": "b"}, None)}
    assert list(found) == [(group, name) for group in "abc" for name in "xy"]
    assert found["a", "x"]["dice"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 5))
    assert math.isnan(found["a", "y"]["dice"]) and math.isnan(found["a", "x"]["hd95"])
    assert found["c", "y"]["dice"] == 0 and found["b", "y"]["iou"] == pytest.approx(1 / 3)
    assert pooled(rows, {"a0": "a", "a1": "a"}, 1.0)[1]["dice"] == 1.0


@pytest.fixture
def slices_in_files(tmp_path):
    """Two volumes of three slices each, every slice a PNG."""
    masks, data = tmp_path / "masks", tmp_path / "data"
    for folder in (masks, data / "images", data / "labels"):
        folder.mkdir(parents=True)
    groups = {}
    for volume in "ab":
        for number in range(3):
            name = f"{volume}{number}"
            groups[name] = volume
            for folder, seed in ((masks, 0), (data / "labels", 1), (data / "images", 2)):
                array = maps((8, 9), ord(volume) + number + 10 * seed) * (number > 0 or volume == "b")
                Image.fromarray(array * (100 if seed == 2 else 1)).save(folder / f"{name}.png")
    (data / "groups.json").write_text(json.dumps(groups))
    return masks, data


def test_slices_in_files_of_their_own_are_pooled_by_volume(slices_in_files, tmp_path):
    masks, data = slices_in_files
    found = ulna.evaluate(masks, data, by="group", out=tmp_path / "scores")
    assert (found.summary["by"], found.summary["cases"], found.summary["images"]) == ("group", 2, 6)
    for row in found.rows:
        stacks = [
            np.stack([np.asarray(Image.open(folder / f"{row['case']}{n}.png")) for n in range(3)]) > 0
            for folder in (masks, data / "labels")
        ]
        wanted = score(*stacks, spacing=(1.0,) * 3, tolerance=1.0, surface=False)
        assert all(row[name] == pytest.approx(value) for name, value in wanted.items())
    assert found.summary["mean"]["hd95"]["mean"] is None
    assert found.summary["pooled"]["foreground"] == ulna.evaluate(masks, data).summary["pooled"]["foreground"]
    ulna.evaluate(masks, data, by="group", out=tmp_path / "scores")  # its own files are replaced
    labels = data / "labels"
    (labels / "groups.json").write_text((data / "groups.json").read_text())
    assert ulna.evaluate(masks, labels, by="group").summary["mean"] == found.summary["mean"]


def test_what_is_wrong_with_a_unit_gets_one_sentence(slices_in_files):
    masks, data = slices_in_files
    with pytest.raises(UsageError, match=r"--by: .*'slices'.*did you mean 'slice'"):
        ulna.evaluate(masks, data, by="slices")
    with pytest.raises(UsageError, match="2D and has no slices"):
        ulna.evaluate(masks, data, by="slice")
    (data / "groups.json").unlink()
    with pytest.raises(UsageError, match=r"groups.json: does not say which cases belong together"):
        ulna.evaluate(masks, data, by="group")


def test_volumes_of_any_tool_are_scored_by_slice(tmp_path):
    for folder, seed in (("masks", 0), ("labels", 1)):
        (tmp_path / folder).mkdir()
        file = nib.Nifti1Image(maps((6, 7, 5), seed), np.diag([1.0, 1.0, 4.0, 1.0]))
        file.header.set_xyzt_units("mm")
        nib.save(file, tmp_path / folder / "a.nii.gz")
    found = ulna.evaluate(tmp_path / "masks", tmp_path / "labels", by="slice", out=tmp_path / "out")
    assert found.summary["cases"] == 5
    assert (tmp_path / "out" / "metrics.csv").read_text().startswith("case,slice,class,")
    ulna.evaluate(tmp_path / "masks", tmp_path / "labels", out=tmp_path / "out")
    assert (tmp_path / "out" / "metrics.csv").read_text().startswith("case,class,")
