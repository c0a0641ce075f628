"""What a server answers is what `ulna predict` writes: pictures, arrays, DICOM; of runs and of exported files."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.dicom_series import write_series
from tests.inference.test_predict import run_folder
from tests.inference.test_trust import TOLD, calibrated, kept
from tests.places import ROOT
from tests.plans import make
from tests.serving.servers import serving
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Series, Source
from ulna.errors import UsageError
from ulna.recipe import Instances, Labels
from ulna.serving import answering
from ulna.serving.answering import answer_upload
from ulna.serving.exported import ExportedEngine
from ulna.serving.jobs import ANSWER
from ulna.serving.limits import Limits
from ulna.serving.trained import TrainedEngine
from ulna.trust.dice import Line, Lines

SETUP = Limits(ram=2_000_000_000)._asdict()


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A 2D run whose masks hold 0 and 255."""
    return run_folder(tmp_path_factory.mktemp("runs") / "flat", 0, mask_values=(0, 255))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A 3D run of three classes."""
    labels = Labels(names=("background", "x", "y"))
    plan = {"spatial_dims": 3, "strides": ((2, 2, 2),), "labels": labels, "unit": "mm", "spacing": (1.0, 1.0, 2.0)}
    return run_folder(tmp_path_factory.mktemp("runs") / "deep", 1, **plan)


def answered(engine, upload, folder, format=None):
    """What the worker says of an upload, and its result folder."""
    folder.mkdir()
    shutil.copy(upload, folder / f"upload{''.join(upload.suffixes)}")
    told = []
    answer_upload(engine, folder, f"upload{''.join(upload.suffixes)}", format, SETUP, lambda *note: told.append(note))
    assert told[0] == ("reading", None)
    assert "predicting" in [stage for stage, _ in told]
    return json.loads((folder / "result" / ANSWER).read_text()), folder / "result"


def picture(path, size=(37, 50), seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size, np.uint8)).save(path)
    return path


def test_a_run_answers_as_predict_does(flat, tmp_path):
    image = picture(tmp_path / "a.png")
    told, result = answered(TrainedEngine(str(flat), 1), image, tmp_path / "job")
    predicted = ulna.predict(flat, image, out=tmp_path / "masks")
    assert (result / told["file"]).read_bytes() == (tmp_path / "masks" / "a.png").read_bytes()
    assert set(np.unique(np.asarray(Image.open(result / "mask.png")))) == {0, 255}
    assert told["trust"] == json.loads((tmp_path / "masks" / "predict.json").read_text())["cases"][0]["trust"]
    assert told["size"] == list(predicted.cases[0]["size"])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError(), UsageError("full")])
def test_a_mask_is_answered_where_there_is_no_room_to_show_it(tmp_path, monkeypatch, error):
    def fail(folder, *given):
        (folder / "shown.png").touch()
        raise error

    monkeypatch.setattr(answering, "write_shown", fail)
    told, result = answered(ExportedEngine("zoo:nuclei", 1), picture(tmp_path / "a.png"), tmp_path / "job")
    assert "view" not in told and told["notes"][-1] == answering.NO_VIEWS
    assert sorted(path.name for path in result.iterdir()) == [ANSWER, "mask.png"]


@pytest.mark.parametrize("colour", [True, False])
def test_an_exported_file_answers_as_predict_does(tmp_path, colour):
    image = picture(tmp_path / "a.png", (40, 33, 3) if colour else (40, 33), 1)
    told, result = answered(ExportedEngine("zoo:nuclei", 1), image, tmp_path / "job")
    ulna.predict("zoo:nuclei", image, out=tmp_path / "masks")
    assert (result / told["file"]).read_bytes() == (tmp_path / "masks" / "a.png").read_bytes()
    assert told["trust"] == json.loads((tmp_path / "masks" / "predict.json").read_text())["cases"][0]["trust"]


@pytest.fixture(scope="module")
def calibrated_files(tmp_path_factory):
    """A calibrated run that averages mirrored copies, and two runs together, each as a file."""
    folder = tmp_path_factory.mktemp("calibrated")
    line = Line(intercept=0.0, slope=1.0, within=0.1, error=0.05, error_of_mean=0.1, cases=9)
    dice = {"mirrored": Lines(mean=line, classes={"foreground": line})}
    runs = []
    for number in range(2):
        run = run_folder(folder / f"run{number}", number, fingerprint=TOLD)
        text = (run / "recipe.yaml").read_text()
        assert "tta: false" in text
        (run / "recipe.yaml").write_text(text.replace("tta: false", "tta: true"))
        runs.append(calibrated(run, post_processing=kept(largest=True, holes=True), dice=dice))
    return [ulna.export(given, out=folder / f"{len(given)}.ulna").file for given in (runs[:1], runs)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_calibrated_file_answers_as_predict_does(calibrated_files, number, tmp_path):
    """Cleaned, with flags and the Dice to expect, which is counted without torch."""
    image = picture(tmp_path / "a.png", (32, 40))
    told, result = answered(ExportedEngine(str(calibrated_files[number]), 1), image, tmp_path / "job")
    ulna.predict(calibrated_files[number], image, out=tmp_path / "masks")
    assert (result / told["file"]).read_bytes() == (tmp_path / "masks" / "a.png").read_bytes()
    trust = json.loads((tmp_path / "masks" / "predict.json").read_text())["cases"][0]["trust"]
    assert told["trust"] == trust
    assert trust["predicted_dice"]["from"] == ("mirrored", "folds")[number]
    assert number == 1 or trust["post_processing"]["foreground"]["filled"] > 0


def series(folder, slices=6):
    values = np.random.default_rng(2).integers(0, 400, (slices, 12, 14)).astype(np.int16)
    write_series(folder, values)
    path = folder.parent / "series.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"study/../x{file.name}".replace("../", ""))
    return path


def classes_of(path, like):
    return read_labels(Source(path, None, Series((path,), grid=tuple(like)))).array


def test_a_zip_of_a_series_answers_with_the_seg_of_predict(deep, tmp_path):
    slices = tmp_path / "dicom"
    upload = series(slices)
    told, result = answered(TrainedEngine(str(deep), 1), upload, tmp_path / "job")
    ulna.predict(deep, slices, out=tmp_path / "masks")
    (own,) = (tmp_path / "masks").glob("*.dcm")
    files = sorted(slices.iterdir())
    mask = classes_of(result / told["file"], files)
    assert told["file"] == "mask.dcm"
    assert np.array_equal(mask, classes_of(own, files)) and mask.max() == 2
    assert not (result.parent / "series").exists()  # what was unpacked is gone


def test_a_series_can_be_looked_at_as_nifti(deep, tmp_path):
    import nibabel

    told, result = answered(TrainedEngine(str(deep), 1), series(tmp_path / "dicom"), tmp_path / "job", "nifti")
    assert told["file"] == "mask.nii.gz"
    image, mask = (nibabel.load(result / told["view"][what]) for what in ("image", "mask"))
    assert image.shape == mask.shape == (14, 12, 6)
    assert np.allclose(image.affine, mask.affine)
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(nibabel.load(result / told["file"]).dataobj))


def test_an_npz_answers_with_an_npz(flat, tmp_path):
    images = np.random.default_rng(3).integers(0, 255, (3, 20, 26), np.uint8)
    path = tmp_path / "many.npz"
    np.savez(path, images=images, ids=np.array(["p", "q", "r"]))
    told, result = answered(TrainedEngine(str(flat), 1), path, tmp_path / "job")
    ulna.predict(flat, path, out=tmp_path / "masks")
    with np.load(result / told["file"]) as ours, np.load(tmp_path / "masks" / "many.npz") as theirs:
        assert np.array_equal(ours["masks"], theirs["masks"])
        assert list(ours["ids"]) == ["p", "q", "r"]
    assert [case["case"] for case in told["cases"]] == ["p", "q", "r"]


@pytest.mark.parametrize("exported", [True, False])
def test_numbered_objects_are_those_of_predict(flat, exported, tmp_path):
    """In the same type too, which does not depend on how many objects there are."""
    run = "zoo:nuclei" if exported else flat
    engine = ExportedEngine(run, 1) if exported else TrainedEngine(str(run), 1)
    predicts = engine if exported else engine.segmenter
    predicts.recipe = predicts.recipe.replaced(inference=predicts.recipe.inference.replaced(instances=Instances()))
    image = picture(tmp_path / "a.png", (40, 33))
    told, result = answered(engine, image, tmp_path / "job")
    ulna.predict(run, image, out=tmp_path / "masks", instances=True)
    assert np.asarray(Image.open(tmp_path / "masks" / "a.png")).max() < 255
    assert (result / told["file"]).read_bytes() == (tmp_path / "masks" / "a.png").read_bytes()


def test_numbered_objects_of_dicom_are_refused_before_they_are_predicted(tmp_path):
    class Numbering:
        plan = make(spatial_dims=3, strides=((2, 2, 2),), unit="mm", spacing=(1.0, 1.0, 2.0))
        numbered = True

    folder = tmp_path / "job"
    folder.mkdir()
    shutil.copy(series(tmp_path / "dicom"), folder / "upload.zip")
    with pytest.raises(UsageError, match="numbered objects are not written as DICOM"):
        answer_upload(Numbering(), folder, "upload.zip", None, SETUP, lambda *_: None)


def test_all_images_of_an_npz_count_together(flat, tmp_path):
    path = tmp_path / "many.npz"
    np.savez_compressed(path, images=np.zeros((400, 100, 100), np.uint8))
    folder = tmp_path / "job"
    folder.mkdir()
    shutil.copy(path, folder / "upload.npz")
    with pytest.raises(UsageError, match=r"declares 400 x .*100 x 100 pixels"):
        answer_upload(
            TrainedEngine(str(flat), 1), folder, "upload.npz", None, {**SETUP, "pixels": 1_000_000}, lambda *_: None
        )


def test_other_channels_are_told(flat, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 20, 20), np.float32))
    with pytest.raises(UsageError, match="channels"):
        answered(ExportedEngine("zoo:nuclei", 1), tmp_path / "a.npy", tmp_path / "job")


def test_torch_is_not_imported_for_an_exported_file(without_torch):
    """And a run folder is refused in one sentence where there is no torch."""
    code = (
        "import sys, ulna.serving.worker as w; w.load_engine('zoo:nuclei', 1); print('torch' in sys.modules)\n"
        "w.load_engine('.', 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=without_torch, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
    assert "is predicted with torch, which is not installed; export it" in done.stderr


@pytest.mark.slow
def test_a_series_goes_through_a_server_of_a_run(deep, tmp_path, monkeypatch):
    """Over HTTP, with torch in the worker: mask, views, and what they are called."""
    places = [ROOT / "src", ROOT / "packages" / "runtime" / "src"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, places)))
    (tmp_path / "served").mkdir()
    with serving(deep, tmp_path / "served") as client:
        assert client.get("/model")["classes"] == ["x", "y"]
        told = client.send("study.zip", series(tmp_path / "dicom").read_bytes())[1]
        job = client.ended(told["id"])
        assert (job["state"], job["file"], job["size"]) == ("done", "study.dcm", [14, 12, 6])
        status, headers, mask = client.ask("GET", f"/jobs/{job['id']}/mask")
        assert (status, headers["content-disposition"]) == (200, 'attachment; filename="study.dcm"')
        assert mask[128:132] == b"DICM"
        for what in ("image", "mask"):
            status, headers, view = client.ask("GET", f"/jobs/{job['id']}/view/{what}")
            assert (status, view[:2]) == (200, b"\x1f\x8b")
            assert headers["content-disposition"] == f'attachment; filename="study_{what}.nii.gz"'
        assert client.ask("GET", f"/jobs/{job['id']}/view/other")[0] == 400
