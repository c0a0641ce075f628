"""`evaluate --max-ram`, and `check --max-ram`: the same scores, and what has no place is listed with the least that works."""

import json
import math
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

import ulna
from tests.inference.test_bounded import peak_of
from ulna.cli import main as cli
from ulna.data.formats import limits
from ulna.data.formats.limits import TooLargeError, keeping_to
from ulna.data.volume import Volume
from ulna.errors import DataError, PartialFailure, UsageError
from ulna.evaluation import needs
from ulna.evaluation.evaluate import evaluate
from ulna.evaluation.needs import BOUNDARY, CENTRELINE, LESIONS, MASKS, SURFACE, THINNED
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Scores
from ulna.recipe import Labels


def pairs(root, sizes, *, classes=2, images=False):
    """Blocks, and predictions that are a voxel off: case -> its size along every axis."""
    for name, n in sizes.items():
        labels = np.zeros((n, n, n), np.uint8)
        for value in range(1, classes + 1):
            at = (value - 1) * n // classes
            labels[at : at + n // classes - 1, 1 : n - 2, 1 : n - 2] = value
        noise = np.random.default_rng(n).normal(0, 300, labels.shape).astype(np.int16)
        for folder, values in (("data/labels", labels), ("masks", np.roll(labels, 1, 2)), ("data/images", noise)):
            if folder != "data/images" or images:
                (root / folder).mkdir(parents=True, exist_ok=True)
                image = nibabel.Nifti1Image(values, np.eye(4))
                image.header.set_xyzt_units("mm")
                image.to_filename(root / folder / f"{name}.nii")
    names = {str(value): f"class {value}" for value in range(1, classes + 1)}
    if images:
        (root / "data" / "classes.json").write_text(json.dumps(names))
    return root / "masks", root / "data" if images else root / "data" / "labels"


@pytest.fixture
def small(monkeypatch):
    """A program that takes hardly any memory itself."""
    monkeypatch.setattr(limits, "held_bytes", lambda: 1000.0)
    monkeypatch.setattr(needs, "LOADED", 0)
    monkeypatch.setattr(needs, "WORKING", 0)


@pytest.mark.usefixtures("small")
def test_the_others_are_scored_as_ever_and_the_means_say_what_they_leave_out(tmp_path, capsys):
    where = pairs(tmp_path, {"a": 12, "b": 14, "c": 60})
    whole = evaluate(*where)
    with pytest.raises(PartialFailure) as raised:
        evaluate(*where, out=tmp_path / "out", max_ram=0.002)
    made = raised.value.result
    assert raised.value.failed.keys() == {"c"} and raised.value.done == 2
    assert re.search(
        r"c\.nii: .* needs 0\.\d\d GB at least, more than --max-ram 0\.002 allows; raise it", str(raised.value)
    )
    wanted = [row for row in whole.rows if row["case"] != "c"]
    assert len(made.rows) == len(wanted) == 4
    for row, one in zip(made.rows, wanted, strict=True):
        assert row.keys() == one.keys()
        assert all(np.array_equal(row[name], one[name], equal_nan=name not in ("case", "class")) for name in row)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["cases"] == 2 and summary["not_scored"].keys() == {"c"} and "not scored" in repr(made)
    assert "in no mean (1)" in (tmp_path / "out" / "report.html").read_text()
    assert cli.run(["evaluate", *map(str, where), "--max-ram", "0.002", "--quiet"]) == 3
    told = capsys.readouterr().out
    assert "2 cases" in told and "1 case not scored, for want of memory, and in no mean: c" in told
    with pytest.raises(DataError, match=r"c\.nii.* GB at least"):  # where nothing is left to score
        evaluate(*pairs(tmp_path / "alone", {"c": 60}), max_ram=0.002)
    least = math.ceil(100 * max(float(gb) for gb in re.findall(r"needs ([\d.]+) GB", str(raised.value)))) / 100
    assert evaluate(*where, max_ram=least).summary == whole.summary


@pytest.mark.usefixtures("small")
def test_a_missing_prediction_and_overlapping_classes_and_probabilities_count_too(tmp_path):
    masks, labels = pairs(tmp_path, {"a": 12, "c": 60})
    (masks / "c.nii").unlink()
    with pytest.raises(PartialFailure, match=r"c\.nii"):
        evaluate(masks, labels, max_ram=0.0005)
    assert evaluate(masks, labels, max_ram=1).summary["missing"] == ["c"]


def test_a_limit_that_the_program_takes_is_refused(tmp_path):
    where = pairs(tmp_path, {"a": 8}, images=True)
    with pytest.raises(UsageError, match=r"without any image it takes [\d.]+ GB, more than --max-ram 0\.05 allows"):
        evaluate(*where, max_ram=0.05)
    with pytest.raises(UsageError, match=r"without any image it takes [\d.]+ GB, more than --max-ram 0\.05 allows"):
        ulna.check(where[1], max_ram=0.05)
    for bound in (0, -1.0, math.nan):
        with pytest.raises(UsageError, match="must be above 0"):
            evaluate(*where, max_ram=bound)


@pytest.mark.usefixtures("small")
def test_check_counts_the_label_map_beside_its_image(tmp_path, monkeypatch):
    monkeypatch.setattr("ulna.data.quality.needs.LOADED", 0)
    monkeypatch.setattr("ulna.data.quality.needs.WORKING", 0)
    _, root = pairs(tmp_path, {"a": 20, "b": 21}, images=True)
    whole = ulna.check(root)
    wide = np.asarray(nibabel.load(root / "labels" / "b.nii").dataobj).astype(np.int64)
    made = nibabel.Nifti1Image(wide, np.eye(4), dtype=np.int64)
    made.header.set_xyzt_units("mm")
    made.to_filename(root / "labels" / "b.nii")
    found = ulna.check(root, max_ram=0.0002)
    (problem,) = found.problems
    assert problem.file.endswith("labels/b.nii") and "GB at least, more than --max-ram 0.0002 allows" in problem.what
    assert found.scans[0].label_values == whole.scans[0].label_values and found.scans[1].image == whole.scans[1].image
    assert ulna.check(root, max_ram=1).ok


def test_what_measuring_takes_is_what_is_counted(monkeypatch):
    """The bytes a voxel of every family, against what numpy takes for it: no less, and no more than three times."""
    hidden = {"surface": 5 / 3}  # trees of scipy, of which tracemalloc does not know
    import tracemalloc

    from ulna.evaluation.boxes import locate
    from ulna.evaluation.further import further_scores
    from ulna.evaluation.metrics import score_in_box
    from ulna.evaluation.surfaces import count_surface

    for name in ("evaluation.surfaces.AT_ONCE", "evaluation.depths.AT_ONCE", "evaluation.centreline._AT_ONCE"):
        monkeypatch.setattr(f"ulna.{name}", 1 << 12)  # what is on its way is small then
    monkeypatch.setattr("ulna.data.formats.slabs.SLAB", 1 << 15)
    labels = np.zeros((90, 90, 90), np.uint8)
    labels[::2, ::3, 4:80] = 1  # tubes: half of it is surface
    moved = np.roll(labels, 1, 1)
    (one,) = locate(labels, moved, 1, multilabel=False)
    masks = [one.mask(labels, multilabel=False), one.mask(moved, multilabel=False)]
    box, surface = masks[0].size, sum(map(count_surface, masks))
    counted = {
        "surface": SURFACE * surface, "lesions": LESIONS * box, "boundary": BOUNDARY * box,
        "cldice": CENTRELINE * box + THINNED * max(map(np.count_nonzero, masks)),
    }  # fmt: skip
    for family, need in counted.items():
        tracemalloc.start()
        if family == "surface":
            score_in_box(*masks, one.counts, labels.shape, spacing=(1, 1, 1), tolerance=1.0)
        else:
            further_scores(*masks, [family], spacing=(1, 1, 1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        counts = f"{family}: {peak / 1e6:.1f} MB, counted {need / 1e6:.1f} MB"
        assert need / 3 / hidden.get(family, 1) < peak < need + MASKS * box + 1e6, counts


def test_the_figure_that_is_told_holds_for_all_structures_of_a_case(monkeypatch):
    monkeypatch.setattr(limits, "held_bytes", lambda: 0.0)
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[:24, ::4], labels[24:, ::2], labels[30:38, 1:9:2, 30:38] = 1, 2, 3  # ever more surface
    names = Labels(names=("background", "one", "two", "three"))
    volume = Volume(labels[None], (1.0, 1.0, 1.0), "px", None, Path("a.nii"))
    limit, rounds = 0.002, 0
    while True:
        try:
            with keeping_to(None, limit, 0, "raise it"):
                Scores(names).add(Pair("a", labels, labels, volume))
            break
        except TooLargeError as error:
            assert "scoring two needs" in str(error)  # and not the first that has no place
            limit, rounds = float(re.search(r"needs ([\d.]+) GB", str(error))[1]), rounds + 1
    assert rounds == 1


@pytest.mark.usefixtures("small")
def test_references_that_were_not_looked_at_are_named(tmp_path, monkeypatch):
    where = pairs(tmp_path, {"a": 12, "b": 14, "c": 60})
    monkeypatch.setattr("ulna.evaluation.needs.SURFACE", 0)
    with pytest.raises(PartialFailure, match=r"c\.nii: .*--metrics surface") as raised:
        evaluate(*where, max_ram=0.002)
    assert raised.value.result.summary["measures"]["not_looked_at"] == ["c"]
    assert "not_looked_at" not in evaluate(*where, max_ram=1).summary.get("measures", {})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell what a process holds")
@pytest.mark.parametrize("verb", ["check", "evaluate"])
def test_the_least_that_works_is_kept_to(tmp_path, verb):
    masks, root = pairs(tmp_path, {"a": 160, "b": 16}, classes=5, images=True)
    call = (verb, *([masks] if verb == "evaluate" else []), root, "--max-ram")
    _, said, code = peak_of(*call, 0.05)
    assert code == 2
    program = float(re.search(r"without any image it takes ([\d.]+) GB", " ".join(said.split()))[1])
    peak, said, code = peak_of(*call, program + 0.015)
    assert peak / 1e9 <= program + 0.015
    assert code == (3 if verb == "evaluate" else 2), said
    least = float(re.search(r"needs ([\d.]+) GB at least", " ".join(said.split()))[1]) + 0.01
    peak, said, code = peak_of(*call, least)
    assert "GB at least" not in said and code in ((0,) if verb == "evaluate" else (0, 2)), said
    assert 0.4 * least < peak / 1e9 <= least
