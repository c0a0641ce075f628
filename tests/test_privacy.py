"""What names a patient stays in the files that it came in: nothing that ulna writes or prints holds it, or where data lie."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ulna
from tests import canaries
from tests import dicom_series as dicom
from tests.test_dicom import TINY, draw
from ulna.cli.main import run
from ulna.data.formats.dicom.originals import IDENTITY
from ulna.data.layout.pseudonyms import Pseudonyms
from ulna.system.passed_on import stored_command, without_places

pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")

PLACE = "place-of-the-data"  # a folder above all others: no file that is passed on names it
IDS = ["Zebulon_47110815", "Yolanda_4712", "Xaver_4713"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three labelled cases, every element of one a canary, folders named after patients."""
    root = tmp_path_factory.mktemp("privacy") / PLACE / "data"
    for number, name in enumerate(IDS):
        (root / name / "labels").mkdir(parents=True)
        draw(root / name, number, labels="seg", change=canaries.plant if number == 0 else None)
    (root / "classes.json").write_text(json.dumps({"labels": {"box": ["box"], "core": ["ROD"]}, "mode": "exclusive"}))
    return root


def flags():
    return [word for one in TINY for word in ("--set", one)]


@pytest.fixture(scope="module")
def outputs(root):
    """All verbs once, as a person calls them, in one process whose every word is kept; and where they wrote."""
    out = root.parent / "out"
    commands = [
        ["check", root],
        ["check", root, "--json"],
        ["plan", root, "--model", "unet", "--out", out / "plan.yaml", "--preview", out / "preview", *flags()],
        ["train", root, "--model", "unet", "--epochs", "1", "--out", out / "run", *flags()],
        [
            "predict",
            out / "run",
            root,
            "--out",
            out / "masks",
            *["--format", "seg", "--format", "rtstruct", "--format", "nifti", "--report"],
        ],
        ["evaluate", out / "masks", root, "--out", out / "scores"],
        ["explain", out / "run", root / IDS[0], "--out", out / "why"],
        ["check", root, "--fix", out / "fixed"],
    ]
    code = "import json, sys\nfrom ulna.cli.main import run\nprint([run(words) for words in json.load(sys.stdin)])"
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], input=words, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == str([0] * len(commands)), done.stdout + done.stderr
    return out, done.stdout + done.stderr


def test_all_kinds_of_elements_are_planted():
    made = dicom.dataset(dicom.ramp(1, 4, 4)[0])
    planted = canaries.plant(made)
    assert planted >= {
        "PN",
        "LO",
        "SH",
        "DA",
        "TM",
        "CS",
        "LT",
        "ST",
        "UT",
        "AE",
        "AS",
        "DS",
        "IS",
        "FD",
        "SQ",
        "US",
        "OB",
    }
    assert len(made) > 1000


def test_no_canary_is_printed(outputs):
    _, printed = outputs
    for mark in canaries.MARKS:
        assert mark not in printed


def test_no_canary_is_written_but_into_dicom_files(outputs):
    out, _ = outputs
    found = [told for told in canaries.found_in([out]) if ".dcm: holds" not in told]
    assert not found
    assert any(".dcm: holds" in told for told in canaries.found_in([out]))  # the search does find them


def test_what_tells_of_trust_is_among_it(outputs):
    """The test above looks into all of these: they are there, and hold what headers say."""
    out, _ = outputs
    for plan in (out / "plan.yaml", out / "run" / "plan.yaml"):
        assert "modalities:" in plan.read_text() and "body_parts:" in plan.read_text()
    assert (out / "run" / "calibration.json").is_file()
    assert (out / "masks" / "report.html").is_file()
    rows = json.loads((out / "masks" / "predict.json").read_text())["cases"]
    (leg,) = (row["trust"] for row in rows if row["case"] == IDS[0])
    assert {"modality", "body part"} & {*leg["compared"], *leg["left_out"]} == {"modality", "body part"}
    if "LEG: " in (out / "run" / "plan.yaml").read_text():  # where the case is one of the training
        assert "body part" in leg["compared"]


def test_a_seg_and_an_rtstruct_hold_of_a_patient_what_the_standard_asks_for_and_no_more(outputs):
    out, _ = outputs
    for name in (f"{IDS[0]}.dcm", f"{IDS[0]}_rtstruct.dcm"):
        made = dicom.pydicom.dcmread(out / "masks" / name)
        told = {one.keyword for one in made if any(mark in str(one.value) for mark in canaries.MARKS)}
        assert {"PatientName", "PatientID", "PatientBirthDate"} <= told <= {*IDENTITY, "PositionReferenceIndicator"}


def test_no_file_says_where_the_data_lie(outputs):
    out, _ = outputs
    assert not canaries.found_in([out], [PLACE])


def test_the_stored_command_repeats_the_run_from_where_data_and_run_lie(outputs):
    out, _ = outputs
    summary = json.loads((out / "run" / "summary.json").read_text())
    assert summary["command"] == "ulna train data --recipe recipe.yaml --plan plan.yaml --out NEW_FOLDER"


def test_faults_in_a_file_full_of_canaries_are_told_without_them(tmp_path, capfd):
    def spoil(made, k):
        canaries.plant(made)
        made.PatientSex, made.StudyDate = "O", "20200101"

    for fault, keyword, value in (
        ("slope", "RescaleSlope", "0"),
        ("place", "ImagePositionPatient", None),
        ("rows", "Rows", 0),
    ):

        def change(made, k, keyword=keyword, value=value):
            spoil(made, k)
            setattr(made, keyword, value)

        with dicom.pydicom.config.disable_value_validation():
            dicom.write_series(tmp_path / "data" / fault, dicom.ramp(3, 4, 5), series=fault, study=fault, change=change)
    (path,) = dicom.write_series(
        tmp_path / "data" / "cut", dicom.ramp(1, 4, 5), series="cut", study="cut", change=spoil
    )
    path.write_bytes(path.read_bytes()[:3000])
    capfd.readouterr()
    assert run(["check", str(tmp_path / "data")]) == 2
    told = "".join(capfd.readouterr())
    assert [fault for fault in ("slope", "place", "rows", "cut") if fault not in told] == [], told
    assert "Traceback" not in told
    assert not any(mark in told for mark in canaries.MARKS)


def test_a_description_that_names_the_patient_is_shown_without_the_name_and_still_chosen_by(tmp_path, capsys):
    def change(made, _):
        made.SeriesDescription = "CANARY-ID Leber nativ"

    for name, each in (("a", change), ("b", None)):
        dicom.write_series(tmp_path / "data" / "case" / name, dicom.ramp(3, 4, 5), series=name, change=each)
    from ulna.data.formats.dicom.choosing import Wishes
    from ulna.data.layout.dataset import Dataset
    from ulna.errors import DataError

    with pytest.raises(DataError, match=r"\(hidden\)-ID Leber nativ") as error:
        Dataset.from_folder(tmp_path / "data", need_labels=False)
    assert dicom.CANARY not in str(error.value)
    assert len(Dataset.from_folder(tmp_path / "data", need_labels=False, wishes=Wishes(("leber",)))) == 1


def test_an_odd_sex_in_the_header_is_left_out_and_the_seg_is_written(outputs):
    out, _ = outputs
    assert dicom.pydicom.dcmread(out / "masks" / f"{IDS[0]}.dcm").PatientSex == ""


def test_texts_of_a_nifti_header_do_not_pass_into_its_mask(tmp_path):
    import nibabel

    from ulna.data.formats.read import read_image
    from ulna.data.formats.source import Source
    from ulna.data.formats.write import write_labels

    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        image = kind(np.zeros((4, 5, 6), np.int16), np.eye(4))
        for field in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
            if field in image.header:
                image.header[field] = b"CANARY"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"CANARY"))
        nibabel.save(image, tmp_path / "a.nii")
        volume = read_image([Source(tmp_path / "a.nii")])
        assert b"CANARY" in (tmp_path / "a.nii").read_bytes()
        made = write_labels(tmp_path / "mask", np.ones((4, 5, 6), np.uint8), volume)
        assert b"CANARY" not in made.read_bytes()


def test_paths_are_written_by_the_name_of_their_folder():
    shown = without_places(Path("/home/me/data"), Path("/home/me/data/run"))
    assert (
        shown("/home/me/data/run/log: x; /home/me/data: y; /home/me/database")
        == "run/log: x; data: y; /home/me/database"
    )
    assert stored_command(["train", "/a/b c", "--out", "runs/x"]) == "ulna train 'b c' --out runs/x"


# pseudonyms


@pytest.fixture(scope="module")
def hidden(root):
    """A run, its predictions and their scores under pseudonyms; and the key's file."""
    out, key = root.parent / "hidden", root.parent / "key.json"
    ulna.train(root, model="unet", out=out / "run", epochs=1, set=TINY, pseudonymise=key)
    ulna.predict(out / "run", root, out=out / "masks", format=["nifti"], report=True, pseudonymise=key)
    ulna.evaluate(out / "masks", root, out=out / "scores", pseudonymise=key)
    return out, key


def test_nothing_that_is_written_holds_an_id(hidden):
    out, _ = hidden
    assert not canaries.found_in([out], [PLACE, *IDS, "Zebulon", "47110815"])


def test_one_id_has_one_name_and_the_users_file_says_which(hidden, root):
    out, key = hidden
    stored = json.loads(key.read_text())
    assert sorted(stored["names"].values()) == sorted(IDS)
    assert key.stat().st_mode & 0o077 == 0
    split = json.loads((out / "run" / "splits.json").read_text())
    assert sorted([*split["train"], *split["val"]]) == sorted(stored["names"])
    masks = {path.name for path in (out / "masks").glob("*.nii.gz")}
    assert masks == {f"{name}.nii.gz" for name in stored["names"]}
    scored = {line.split(",")[0] for line in (out / "scores" / "metrics.csv").read_text().splitlines()[1:]}
    assert scored == set(stored["names"])
    assert all(re.fullmatch("case_[0-9a-f]{12}", name) for name in stored["names"])


def test_another_key_gives_other_names(tmp_path):
    a, b = Pseudonyms.open(tmp_path / "a.json"), Pseudonyms.open(tmp_path / "b.json")
    assert a.of("P1") != b.of("P1") and a.of(a.of("P1")) == a.of("P1")
    assert a.remembered("P1") == Pseudonyms.open(tmp_path / "a.json").of("P1")


def test_a_run_goes_on_with_its_key_alone(hidden, root, tmp_path):
    out, key = hidden
    go_on = ["train", str(root), "--out", str(out / "run"), "--resume", "--epochs", "2"]
    with pytest.raises(ulna.UsageError, match="its ids are pseudonyms; name the file"):
        ulna.train(root, out=out / "run", resume=True, epochs=2)
    with pytest.raises(ulna.UsageError, match="holds another key"):
        ulna.train(root, out=out / "run", resume=True, epochs=2, pseudonymise=tmp_path / "other.json")
    assert run([*go_on, "--pseudonymise", str(key), "--quiet"]) == 0
    with pytest.raises(ulna.UsageError, match="its ids are pseudonyms"):
        ulna.predict(out / "run", root, out=tmp_path / "m", split="val")
    made = ulna.predict(out / "run", root, out=tmp_path / "m", split="val", pseudonymise=key, format=["nifti"])
    assert len(made.cases) == 1


def test_a_run_with_plain_ids_does_not_go_on_with_a_key(outputs, root, tmp_path):
    out, _ = outputs
    with pytest.raises(ulna.UsageError, match="begun with the ids of the data"):
        ulna.train(root, out=out / "run", resume=True, epochs=2, pseudonymise=tmp_path / "key.json")


@pytest.mark.slow
def test_folds_go_under_pseudonyms(root, tmp_path):
    key = root.parent / "key-of-folds.json"
    ulna.train(root, model="unet", out=tmp_path / "folds", folds=3, epochs=1, set=TINY, pseudonymise=key)
    assert not canaries.found_in([tmp_path / "folds"], [PLACE, *IDS])
    names = json.loads(key.read_text())["names"]
    assert {row.split(",")[0] for row in (tmp_path / "folds" / "cases.csv").read_text().splitlines()[1:]} == set(names)


@pytest.mark.slow
def test_a_study_goes_under_pseudonyms(root, tmp_path):
    key = tmp_path / "key.json"
    ulna.compare(root, models="unet", out=tmp_path / "study", epochs=1, set=TINY, pseudonymise=key)
    assert not canaries.found_in([tmp_path / "study"], [PLACE, *IDS])
    assert any(
        name in (tmp_path / "study" / "results.csv").read_text() for name in json.loads(key.read_text())["names"]
    )


@pytest.mark.parametrize("place", ["run/key.json", "run/inner/key.json"])
def test_the_key_never_lies_in_what_is_passed_on(root, tmp_path, place):
    with pytest.raises(ulna.UsageError, match="passed on with the key"):
        ulna.train(root, model="unet", out=tmp_path / "run", epochs=1, set=TINY, pseudonymise=tmp_path / place)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"key": "00", "names": {}}', '{"key": 1}'])
def test_a_file_that_is_no_key_is_not_replaced(tmp_path, text):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(ulna.UsageError):
        Pseudonyms.open(tmp_path / "key.json")
    assert (tmp_path / "key.json").read_text() == text
