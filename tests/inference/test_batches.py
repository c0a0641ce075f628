"""A tree of studies: what can be predicted is, what cannot is named with the reason, and a line a case says what is left."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

from tests import dicom_series as dicom
from tests.test_dicom import TINY, draw
from ulna.cli.main import run
from ulna.data.layout.dataset import Dataset
from ulna.errors import PartialFailure, UsageError
from ulna.inference.batches import Pace, usable
from ulna.inference.predict import predict
from ulna.training.train import train

pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    for number in range(2):
        (root / "data" / f"P{number}" / "labels").mkdir(parents=True)
        draw(root / "data" / f"P{number}", number)
    (root / "data" / "classes.json").write_text(json.dumps({"labels": {"box": ["box"], "core": ["rod"]}}))
    return train(root / "data", model="unet", out=root / "run", epochs=1, set=TINY).folder


@pytest.fixture
def tree(tmp_path):
    """Two sound studies, five that are not, and three folders without an image."""
    root = tmp_path / "pacs"
    for number, name in enumerate(("good", "two/monday", "two/tuesday")):
        draw(root / name, number, labels="", study=name, series=name)
    for name in ("gap", "cut", "which"):
        draw(root / name, 7, labels="", study=name, series=f"{name}-a")
    draw(root / "which", 8, labels="", study="which", series="which-b")
    sorted((root / "gap" / "gap-a").iterdir())[3].unlink()
    path = sorted((root / "cut" / "cut-a").iterdir())[0]
    path.write_bytes(path.read_bytes()[:60])
    draw(root / "masks only", 9, study="other", series="x")
    shutil.rmtree(root / "masks only" / "x")
    (root / "papers").mkdir()
    (root / "papers" / "letter.txt").write_text("x")
    (root / "empty").mkdir()
    return root


def test_sound_studies_are_predicted_and_the_others_listed_with_code_3(trained, tree, tmp_path, capsys):
    assert run(["predict", str(trained), str(tree), "--out", str(tmp_path / "m")]) == 3
    told = capsys.readouterr().err
    assert "3 of 6 cases failed, the others are written" in told
    assert "gap: " in told and "misses slices" in told
    assert "which: holds 2 series of 8 slices" in told and "--series" in told
    assert "cut" in told
    for folder, why in (("masks only", "SEG"), ("papers", "1 files that are no DICOM"), ("empty", "no file")):
        assert f"{folder}/: skipped, it holds {why} and no image" in told
    assert "3 of " in told and " s left" in told
    assert "Traceback" not in told
    written = {path.name for path in (tmp_path / "m").glob("*.dcm")}
    assert written == {"good.dcm", "two-monday.dcm", "two-tuesday.dcm"}
    facts = json.loads((tmp_path / "m" / "predict.json").read_text())
    assert set(facts["failed"]) == {"gap", "cut", "which"} <= set(facts["asked"])
    assert str(tmp_path) not in json.dumps(facts)


def test_called_again_it_does_what_was_mended_alone(trained, tree, tmp_path):
    with pytest.raises(PartialFailure):
        predict(trained, tree, out=tmp_path / "m")
    shutil.rmtree(tree / "cut"), shutil.rmtree(tree / "which" / "which-b"), shutil.rmtree(tree / "gap")
    made = predict(trained, tree, out=tmp_path / "m")
    assert len(made.skipped) == 3 and len(made.cases) == 4


def test_nothing_sound_in_a_tree_is_an_error_with_every_fault(trained, tree, tmp_path):
    for name in ("good", "two"):
        shutil.rmtree(tree / name)
    shutil.rmtree(tree / "gap")
    with pytest.raises(UsageError, match=r"(?s)which.*--series"):
        predict(trained, tree, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_fault_in_one_study_of_a_patient_leaves_the_other_one(tree):
    path = sorted((tree / "two" / "monday").rglob("*.dcm"))[0]
    path.write_bytes(path.read_bytes()[:60])
    dataset, problems = Dataset.scan(tree, need_labels=False)
    kept, failed = usable(dataset, problems)
    assert "two-tuesday" in [case.id for case in kept.cases]
    assert "two-monday" in failed and "two-monday" not in [case.id for case in kept.cases]


def test_faults_of_other_data_sets_are_told_before_any_work(tmp_path):
    (tmp_path / "images").mkdir()
    dataset, problems = Dataset.scan(_pictures(tmp_path), need_labels=False)
    assert problems
    with pytest.raises(UsageError):
        usable(dataset, problems)


def _pictures(root):
    from PIL import Image

    Image.new("L", (8, 8)).save(root / "images" / "a.png")
    Image.new("L", (8, 8)).save(root / "images" / "a.bmp")
    return root


def test_pseudonyms_stand_for_folders_that_failed_too(trained, tree, tmp_path):
    key = tmp_path / "key.json"
    with pytest.raises(PartialFailure):
        predict(trained, tree, out=tmp_path / "m", pseudonymise=key, format=["nifti"])
    names = json.loads(key.read_text())["names"]
    facts = (tmp_path / "m" / "predict.json").read_text()
    assert {names[name] for name in json.loads(facts)["failed"]} == {"gap", "cut", "which"}
    for name in ("monday", "which", "good", dicom.CANARY):
        assert name not in facts


def test_a_case_of_other_data_is_told_at_most_every_ten_seconds(caplog):
    with caplog.at_level(logging.INFO):
        for every in (True, False):
            pace = Pace(3, every=every)
            for name in "abc":
                pace.done(name, "1.0 s")
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "1 of 3: a: 1.0 s",
        "2 of 3: b: 1.0 s",
        "3 of 3: c: 1.0 s",
    ]
