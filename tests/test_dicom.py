"""DICOM through every verb: a tree as it is downloaded is checked, trained on, predicted, evaluated and explained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import ulna
from tests import dicom_series as dicom
from ulna.cli.main import run
from ulna.data.formats.dicom.about import About
from ulna.data.formats.write import write_labels, write_probabilities
from ulna.data.layout.dataset import Dataset
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.evaluation.probabilities import read_probabilities
from ulna.evaluation.scored_page import _image
from ulna.recipe import Labels

pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")

TINY = [
    "architecture.base_channels=4",
    "architecture.max_levels=2",
    "planning.patch=[16, 16, 8]",
    "planning.batch=1",
]


def draw(folder, seed, *, labels="seg", study=None, series="ct", size=(8, 18, 20), **kwargs):
    """A case: a series with a bright box and a brighter rod, and what they are, as SEG or RTSTRUCT beside it."""
    random = np.random.default_rng(seed)
    study = study or f"study {seed}"
    values = random.integers(0, 40, size).astype(np.int16)
    truth = np.zeros(size, np.uint8)
    j, i = random.integers(2, 6, 2)
    truth[2:6, j : j + 8, i : i + 9] = 1
    truth[3:5, j + 2 : j + 5, i + 2 : i + 6] = 2
    values += truth.astype(np.int16) * 150
    dicom.write_series(folder / series, values, study=study, series=series, spacing=(1.5, 1.5), step=2.0, **kwargs)
    if labels:
        from ulna.data.formats.dicom.choosing import Wishes, series_in
        from ulna.data.formats.read import read_image

        sources, _ = series_in(folder / series, Wishes())
        volume = read_image(sources, 3)
        write_labels(folder / "labels" / "1", truth.transpose(2, 1, 0), volume, About(("box", "rod")), labels)
    return truth.transpose(2, 1, 0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("download") / "data"
    for number in range(6):
        (root / f"P{number}" / "labels").mkdir(parents=True)
        draw(root / f"P{number}", number, labels="rtstruct" if number == 5 else "seg", reverse=number % 2 == 0)
    (root / "classes.json").write_text(json.dumps({"labels": {"box": ["box"], "core": ["ROD"]}, "mode": "exclusive"}))
    return root


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    ulna.train(tree, model="unet", out=out, epochs=2, seed=0, set=TINY)
    return out


def test_a_download_is_checked_and_planned(tree, capsys):
    report = ulna.check(tree)
    assert report.ok, report
    assert run(["check", str(tree)]) == 0
    assert dicom.CANARY not in "".join(capsys.readouterr())


def test_a_run_on_it_predicts_a_verified_seg_and_is_evaluated(tree, trained, tmp_path):
    made = ulna.predict(trained, tree, out=tmp_path / "masks")
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.dcm")) == [f"P{n}.dcm" for n in range(6)]
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    assert all(row["verified"] == {row["file"]: "read again, equal voxel by voxel"} for row in facts["cases"])
    scores = ulna.evaluate(tmp_path / "masks", tree)
    assert scores.summary["cases"] == 6
    assert {row["class"] for row in scores.rows} == {"box", "core"}
    # the mask of a SEG is the one that the segmenter gives
    segment = ulna.load(trained)
    case = Dataset.from_folder(tree, need_labels=False).case("P1")
    result = segment(str(tree / "P1" / "ct"))
    bits = dicom.pydicom.dcmread(tmp_path / "masks" / "P1.dcm")
    assert int(np.unpackbits(np.frombuffer(bits.PixelData, np.uint8)).sum()) == np.count_nonzero(result.mask)
    assert np.array_equal(case.read_image().array, result.volume.array)
    assert made.failed == {}
    again = ulna.predict(trained, tree, out=tmp_path / "masks")
    assert len(again.skipped) == 6


def test_formats_side_by_side(tree, trained, tmp_path):
    ulna.predict(trained, tree / "P0", out=tmp_path / "m", format=["seg", "rtstruct", "nifti"], probabilities=True)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert {"ct.dcm", "ct_rtstruct.dcm", "ct.nii.gz", "ct_probabilities.nii.gz", "predict.json"} <= names
    (row,) = json.loads((tmp_path / "m" / "predict.json").read_text())["cases"]
    assert set(row["verified"]) == {"ct.dcm", "ct_rtstruct.dcm"}
    assert run(["predict", str(trained), str(tree), "--out", str(tmp_path / "n"), "--format", "jpeg"]) == 2
    assert ulna.evaluate(tmp_path / "m", tree / "P0").summary["cases"] == 1


def test_a_mask_is_not_written_into_the_tree(tree, trained):
    assert run(["predict", str(trained), str(tree), "--out", str(tree / "masks")]) == 2


def test_it_is_resumed_explained_and_predicted_from_python(tree, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    ulna.train(tree, out=tmp_path / "run", epochs=3, resume=True)
    ulna.explain(trained, tree / "P2", out=tmp_path / "why")
    assert (tmp_path / "why" / "overlay.nii.gz").exists()
    result = ulna.load(trained)(tree / "P2" / "ct")
    assert result.save(tmp_path / "one").suffix == ".dcm"


def test_a_label_file_is_not_segmented_as_an_image(tree, trained, tmp_path, capsys):
    for path in (tree / "P0" / "labels" / "1.dcm", tree / "P5" / "labels"):
        assert run(["predict", str(trained), str(path), "--out", str(tmp_path / "m")]) == 2
        assert "label file" in (text := capsys.readouterr().err) or "no DICOM image" in text


def test_no_name_leaves_the_headers(tree, trained, tmp_path, capsys, caplog):
    """Canaries in every field: they may stand in DICOM files alone, which belong to the study."""
    with caplog.at_level("DEBUG"):
        assert (
            run(
                [
                    "predict",
                    str(trained),
                    str(tree),
                    "--out",
                    str(tmp_path / "m"),
                    "--format",
                    "seg",
                    "--format",
                    "nifti",
                ]
            )
            == 0
        )
        run(["check", str(tree), "--json"])
        run(["evaluate", str(tmp_path / "m"), str(tree), "--out", str(tmp_path / "scores")])
    printed = "".join(capsys.readouterr()) + caplog.text
    written = [path for root in (trained, tmp_path) for path in root.rglob("*") if path.is_file()]
    for canary in (dicom.CANARY, "19010203"):
        assert canary not in printed
        for path in written:
            assert canary not in path.name
            assert path.suffix == ".dcm" or canary.encode() not in path.read_bytes()


def test_check_fix_makes_pairs_of_one_file(tree, tmp_path):
    report = ulna.check(tree, fix=tmp_path / "fixed")
    assert report.ok, report
    assert len(list((tmp_path / "fixed" / "images").glob("*.nii.gz"))) == 6


def test_pairs_of_folders_and_labels_of_any_kind(tmp_path):
    root = tmp_path / "pairs"
    for number in range(3):
        truth = draw(root / "raw" / f"c{number}", number, labels="")
        (root / "images").mkdir(exist_ok=True), (root / "labels").mkdir(exist_ok=True)
        (root / "raw" / f"c{number}" / "ct").rename(root / "images" / f"c{number}")
        case_folder = root / "images" / f"c{number}"
        from ulna.data.formats.dicom.choosing import Wishes, series_in
        from ulna.data.formats.read import read_image

        volume = read_image(series_in(case_folder, Wishes())[0], 3)
        if number == 0:
            write_labels(root / "labels" / "c0", truth, volume, About(("box", "rod")), "nifti")
        elif number == 1:  # the same voxels, stored the other way round
            import nibabel

            flip = np.diag([1, -1, 1, 1.0])
            flip[1, 3] = truth.shape[1] - 1
            nibabel.save(nibabel.Nifti1Image(truth[:, ::-1], volume.affine @ flip), root / "labels" / "c1.nii.gz")
        else:
            write_labels(root / "labels" / "c2", truth, volume, About(("box", "rod")))
    shutil.rmtree(root / "raw")
    dataset = Dataset.from_folder(root)
    assert dataset.layout == "pairs"
    for number in range(3):
        case = dataset.case(f"c{number}")
        image, labels = case.read_image(), case.read_labels()
        assert labels.size == image.size
        assert (image.array[0][labels.array[0] == 2] > 250).all() and (labels.array[0] == 2).any()


def test_probabilities_and_pictures_are_turned_onto_the_reference_as_the_mask_is(tmp_path):
    """Labels as they are stored elsewhere: the same voxels, an axis the other way round."""
    from ulna.data.formats.dicom.choosing import Wishes, series_in
    from ulna.data.formats.read import read_image

    truth = (draw(tmp_path / "c1", 1, labels="") > 0).astype(np.uint8)
    volume = read_image(series_in(tmp_path / "c1" / "ct", Wishes())[0], 3)
    write_labels(tmp_path / "p" / "c1", truth, volume, About(("box",)), "seg")
    write_probabilities(tmp_path / "p" / "c1_probabilities", truth[None].astype(np.float32), volume)
    flip = np.diag([1, -1, 1, 1.0])
    flip[1, 3] = truth.shape[1] - 1
    turned = Volume(truth[None, :, ::-1], volume.spacing, "mm", volume.affine @ flip)
    write_labels(tmp_path / "r" / "c1", turned.array[0], turned, None, "nifti")
    (row,) = ulna.evaluate(tmp_path / "p", tmp_path / "r", metrics=["overlap", "calibration"]).rows
    assert (row["dice"], row["brier"]) == (1, 0)

    found = _image(turned, SimpleNamespace(read_image=lambda: volume))
    assert np.array_equal(found.array, volume.array[:, :, ::-1])
    beside = replace(turned, affine=turned.affine @ np.diag([1.0, 1.0, 1.1, 1.0]))
    assert _image(beside, SimpleNamespace(read_image=lambda: volume)) is None
    with pytest.raises(UsageError, match=r"c1_probabilities\.nii\.gz: has another orientation, origin or spacing"):
        read_probabilities(tmp_path / "p" / "c1_probabilities.nii.gz", Labels(), beside)


@pytest.mark.parametrize("formats", [[], ["rtstruct"], ["nifti", "seg"]])
def test_the_page_of_a_tree_shows_every_case_and_nothing_of_a_header(tree, trained, tmp_path, formats):
    ulna.predict(trained, tree, out=tmp_path / "m", format=formats, report=True)
    text = (tmp_path / "m" / "report.html").read_text("utf-8")
    assert dicom.CANARY not in text and "axial 5 mm" not in text and dicom.uid("study 1") not in text
    assert all(f"P{number}</" in text for number in range(6))
    assert "no picture" not in text and text.count('class="lines"') >= 6
    assert ("read again and verified" in text) == (formats != ["nifti"])
    facts = json.loads((tmp_path / "m" / "predict.json").read_text())
    assert len(facts["cases"]) == 6


def test_the_page_quotes_no_header_where_the_modality_or_body_part_is_another(tree, trained, tmp_path):
    def named(made, number):
        made.BodyPartExamined = dicom.CANARY

    (tmp_path / "new").mkdir()
    values = np.random.default_rng(0).integers(0, 40, (8, 18, 20)).astype(np.int16)
    dicom.write_series(tmp_path / "new" / "X", values, spacing=(1.5, 1.5), modality="MR", change=named)
    ulna.predict(trained, tmp_path / "new", out=tmp_path / "m", report=True)
    text = (tmp_path / "m" / "report.html").read_text("utf-8")
    assert "modality is another than that of the training images" in text and dicom.CANARY not in text
