"""Trust in a clinic: series unlike those of the training are said, recorded and refused, by what their headers say."""

import json
import logging

import pytest

import ulna
from tests import canaries
from tests import dicom_series as dicom
from tests.test_dicom import TINY, draw
from ulna.cli.main import run
from ulna.recipe import Plan, from_yaml
from ulna.trust.calibration import read_calibration

pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")


def shows(body_part):
    """A change of every slice: which part of the body it shows."""
    return lambda made, _: setattr(made, "BodyPartExamined", body_part)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Labelled CT of the abdomen; the folder of one holds the patient's name also in the field of the body part."""
    root = tmp_path_factory.mktemp("abdomen") / "data"
    for number in range(6):
        (root / f"P{number}" / "labels").mkdir(parents=True)
        named = f"{dicom.CANARY} ABDOMEN" if number == 0 else "ABDOMEN"
        draw(root / f"P{number}", number, change=shows(named))
    (root / "classes.json").write_text(json.dumps({"labels": {"box": ["box"], "core": ["ROD"]}, "mode": "exclusive"}))
    return root


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    ulna.train(tree, model="unet", out=out, epochs=2, seed=0, set=TINY)
    return out


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """One study like the training, one of another modality, one of another part of the body."""
    root = tmp_path_factory.mktemp("studies") / "pacs"
    draw(root / "like", 1, labels=None, change=shows("ABDOMEN"), study="like")
    draw(root / "mr", 1, labels=None, change=shows("ABDOMEN"), study="mr", modality="MR")
    draw(root / "head", 1, labels=None, change=shows("HEAD"), study="head")
    return root


ODD = {
    "mr": ("modality", "is MR, the training images are CT"),
    "head": ("body part", "shows HEAD, the training images ABDOMEN"),
}


def test_the_plan_keeps_what_the_headers_say_and_no_name(trained):
    plan = (trained / "plan.yaml").read_text()
    told = from_yaml(Plan, trained / "plan.yaml").fingerprint
    assert told.modalities == {"CT": told.cases} and told.body_parts == {"ABDOMEN": told.cases}
    assert dicom.CANARY not in plan


def test_another_modality_or_body_part_is_one_line_and_stands_in_the_record(trained, studies, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ulna")
    ulna.predict(trained, studies, out=tmp_path / "masks")
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    assert facts["trust"]["calibrated"] and not facts["trust"]["strict"]
    told = {row["case"]: row["trust"] for row in facts["cases"]}
    of_input = {case: [flag for flag in own["flags"] if flag["about"] == "input"] for case, own in told.items()}
    assert of_input == {"like": []} | {
        case: [{"about": "input", "what": rule, "text": text}] for case, (rule, text) in ODD.items()
    }
    assert all({"modality", "body part"} <= set(own["compared"]) for own in told.values())
    said = [line for line in caplog.messages if "unlike the training data" in line]
    assert sorted(said) == sorted(
        f"note: {case}: unlike the training data: {rule} {text}" for case, (rule, text) in ODD.items()
    )


def test_strict_refuses_them_before_they_are_predicted(trained, studies, tmp_path, capsys):
    words = ["predict", str(trained), str(studies), "--out", str(tmp_path / "masks"), "--strict"]
    assert run(words) == 3
    told = capsys.readouterr().err
    assert all(text in told for _, text in ODD.values())
    assert [path.name for path in (tmp_path / "masks").glob("*.dcm")] == ["like.dcm"]
    facts = json.loads((tmp_path / "masks" / "predict.json").read_text())
    assert sorted(facts["failed"]) == sorted(ODD) and facts["trust"]["strict"]
    assert str(studies.parent) not in json.dumps(facts)
    assert run(["predict", str(trained), str(studies / "mr"), "--out", str(tmp_path / "none"), "--strict"]) == 2
    assert "no case could be predicted" in capsys.readouterr().err


def test_what_is_kept_of_trust_names_nobody(trained, tree, tmp_path):
    assert read_calibration(trained) is not None
    ulna.predict(trained, tree, out=tmp_path / "masks", format=["nifti"])
    row = json.loads((tmp_path / "masks" / "predict.json").read_text())["cases"][0]
    assert row["trust"]["compared"]
    assert (trained / "calibration.json").is_file() and (trained / "plan.yaml").is_file()
    assert not canaries.found_in([trained, tmp_path / "masks"])
