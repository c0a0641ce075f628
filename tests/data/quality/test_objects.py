"""Label maps that number objects are told from maps of classes, said, and merged on request or by --fix."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.data.quality.test_faults import png_set, shapes
from ulna.data.quality.check import check
from ulna.data.quality.objects import count_objects, objects_found
from ulna.recipe import Labels


def numbered(count, size=(60, 70), first=1, step=1):
    """Little squares on a grid, each with a number of its own."""
    labels = np.zeros(size, np.uint16)
    for number in range(count):
        y, x = divmod(number, size[1] // 5)
        labels[5 * y : 5 * y + 3, 5 * x : 5 * x + 3] = first + number * step
    return labels


def instances(root, counts, **how):
    for n, count in enumerate(counts):
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(n).integers(0, 90, (60, 70)).astype(np.uint8)
        Image.fromarray(image + (100 * (numbered(count) > 0)).astype(np.uint8)).save(root / "images" / f"c{n}.png")
        tifffile.imwrite(root / "labels" / f"c{n}.tif", numbered(count, **how))
    return root


def values(array):
    return [int(value) for value in np.unique(array) if value]


def test_objects_are_values_of_one_piece():
    many = numbered(50)
    assert count_objects(many, values(many)) == 50
    assert count_objects(np.pad(many[None], ((1, 1), (0, 0), (0, 0))), values(many)) == 50
    far = np.where(many, many.astype(np.int64) * 100_000, 0)
    assert count_objects(far, values(far)) == 50
    many[many <= 2] = 3  # one of 48 in pieces
    assert count_objects(many, values(many)) == 48
    many[many <= 20] = 3 + many[many <= 20] % 4  # four classes of many pieces
    assert count_objects(many, values(many)) == 0
    grey = np.arange(480).reshape(24, 20)
    assert count_objects(grey, values(grey)) == 0
    touching = np.array([[1, 1, 2, 2], [1, 2, 2, 3], [1, 1, 3, 3], [4, 4, 4, 4]])
    assert count_objects(touching, [1, 2, 3, 4]) == 4


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([40], True),  # more than there are classes
        ([7, 3, 5], True),  # counted from 1, another number in every case
        ([3, 2, 1], False),  # three organs, some of them cut off
        ([7, 7, 7], False),  # seven organs
        ([8, 7, 8], False),
        ([0, 0], False),
    ],
)
def test_numbers_of_objects_vary_and_classes_do_not(counts, said):
    maps = {f"c{n}": list(range(1, count + 1)) for n, count in enumerate(counts)}
    assert bool(objects_found(maps, {case: len(own) for case, own in maps.items()})) is said
    assert objects_found(maps, dict.fromkeys(maps, 0)) == ""


def test_objects_are_said_merged_on_request_and_by_fix(tmp_path):
    root = instances(tmp_path / "data", [40, 35, 300 // 2, 20])
    report = check(root)
    (problem,) = report.problems
    assert "the label maps number objects: 20 to 150 values a case, most in c2" in problem.what
    assert '"instances": true' in problem.remedy and "check --fix OUT" in problem.remedy and report.labels is None

    fixed = check(root, fix=tmp_path / "fixed")
    assert fixed.ok and fixed.labels == Labels(names=("background", "object"))
    assert fixed.scans[0].label_values == {0: 60 * 70 - 40 * 9, 1: 40 * 9}
    assert any("40 numbered objects became one class" in change for change in fixed.repair.changes)

    (root / "classes.json").write_text(json.dumps({"labels": {"1": "nucleus"}, "instances": True}))
    asked = check(root)
    assert asked.ok and asked.labels.instances and asked.scans[0].label_values == {0: 60 * 70 - 360, 1: 360}
    again = check(root, fix=tmp_path / "copy")
    assert again.ok and again.labels == asked.labels


def test_more_objects_than_can_be_counted_as_values(tmp_path):
    root = instances(tmp_path, [160, 120], step=3)  # up to 478
    assert "number objects" in check(root).problems[0].what
    (root / "classes.json").write_text(json.dumps({"labels": ["nucleus"], "instances": True}))
    assert check(root).ok


def test_few_objects_are_a_note_and_classes_stay(tmp_path):
    report = check(instances(tmp_path, [6, 4, 5, 3]))
    assert report.ok and len(report.labels.foreground) == 6
    assert sum("the label maps number objects: 3 to 6" in note for note in report.notes) == 1


def test_classes_are_no_objects(tmp_path):
    root = png_set(tmp_path / "data")
    for n in range(4):
        Image.fromarray(np.maximum(shapes((24, 20), at=2), shapes((24, 20), 2, at=9))).save(
            root / "labels" / f"c{n}.png"
        )
    report = check(root)
    assert report.ok and not any("objects" in note for note in report.notes)


def test_values_that_occur_nowhere(tmp_path):
    root = png_set(tmp_path)  # 0 and 1
    (root / "classes.json").write_text(json.dumps({"tumour": [1, 2, 3]}))
    report = check(root)
    assert report.ok and "classes.json makes 'tumour' of 1, 2, 3; 2, 3 occur in no case" in report.notes
    (root / "classes.json").write_text(json.dumps({"tumour": [1], "cyst": [5, 6]}))
    (problem,) = check(root).problems
    assert problem.file.endswith("classes.json") and problem.remedy == "name values that occur: 1"
    assert problem.what == "makes 'cyst' of the label values 5, 6, and none of them occurs in 4 cases"


def test_what_is_ignored_counts_for_no_class(tmp_path):
    root = png_set(tmp_path)
    for n in range(4):
        labels = np.maximum(shapes((24, 20), at=2 + n), shapes((24, 20), 255, at=12))
        Image.fromarray(labels).save(root / "labels" / f"c{n}.png")
    assert 'write "ignore": 255 in classes.json' in str(check(root).problems[0])
    (root / "classes.json").write_text(json.dumps({"1": "vessel", "ignore": 255}))
    report = check(root)
    assert report.ok and report.scans[0].label_values == {0: 24 * 20 - 30, 1: 15}
    assert not report.scans[0].two_valued_255
    Image.fromarray(np.full((24, 20), 255, np.uint8)).save(root / "labels" / "c3.png")
    report = check(root)
    assert report.ok and report.scans[3].label_values == {0: 0} and report.scans[3].foreground == ()
    assert "c3: its label map is ignored everywhere" in report.notes
    fixed = check(root, fix=tmp_path.parent / f"{tmp_path.name}-fixed")
    assert fixed.ok and fixed.labels == report.labels
