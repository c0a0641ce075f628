"""A run that was calibrated, as one file: the same masks after post-processing, probabilities, flags and page."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import ulna
from tests.inference.test_predict import run_folder
from tests.inference.test_trust import SEEN, TOLD, calibrated, kept, rows_of
from tests.plans import make
from ulna.data.volume import Volume
from ulna.exporting import export as exporting
from ulna.inference.exported import ExportedSegmenter
from ulna.recipe import Normalization, Recipe
from ulna.trust.cleaning import Rule
from ulna.trust.dice import Line, Lines
from ulna.trust.temperature import Temperature
from ulna_runtime import load
from ulna_runtime.bundle import read_bundle
from ulna_runtime.calibration import Rule as Runtimes

WARM = Temperature(value=2.5, ece_before=0.1, ece_after=0.05, cases=5, voxels=9)
LINE = Line(intercept=0.0, slope=1.0, within=0.1, error=0.05, error_of_mean=0.1, cases=9)


@pytest.fixture(scope="module", autouse=True)
def one_graph():
    """All runs here have the same weights: torch exports them once, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        make, kept = exporting.make_graphs, []
        patch.setattr(exporting, "make_graphs", lambda *given: (kept or kept.append(make(*given)) or kept)[0])
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A calibrated run, trained in float32, so that masks may be compared to the voxel."""
    folder = run_folder(tmp_path_factory.mktemp("runs") / "run", 0, fingerprint=TOLD)
    text = (folder / "recipe.yaml").read_text()
    assert "precision: auto" in text
    (folder / "recipe.yaml").write_text(text.replace("precision: auto", "precision: fp32"))
    dice = dict.fromkeys(("copies", "mirrored", "heads"), Lines(mean=LINE, classes={"foreground": LINE}))
    return calibrated(folder, post_processing=kept(largest=True), temperature=WARM, dice=dice)


@pytest.fixture(scope="module")
def exported(run):
    return ulna.export(run, out=run.parent / "a.ulna")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "data" / "images" / "a.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 40), np.uint8)).save(path)
    return path


@pytest.mark.slow
def test_the_file_cleans_and_scales_as_the_run_does(run, exported, image):
    own, of_run = load(exported.file), ulna.load(run)(image)
    result = own(image, probabilities=True)
    assert exported.parity.identical >= 0.999
    assert result.changed["foreground"].removed > 0
    for found in (result, ulna.load(exported.file)(image)):
        # a graph rounds otherwise than torch: a voxel at the threshold may fall on the other side on another processor
        assert (found.mask == of_run.mask).mean() >= 0.999
        assert np.abs(found.probabilities - of_run.probabilities).max() < 1e-5
    raw = ulna.load(run, post_processing=False)(image).mask
    assert np.array_equal(own(image, post_processing=False).mask, raw)
    assert ndimage.label(raw, np.ones((3, 3)))[1] > 1


def test_predict_tells_of_a_file_what_it_tells_of_the_run(run, exported, image, tmp_path):
    for name, what in (("run", run), ("file", exported.file)):
        ulna.predict(what, image, out=tmp_path / name, report=True)
    ulna.predict(exported.file, image, out=tmp_path / "raw", no_post_processing=True)
    of_run, of_file, raw = (rows_of(tmp_path / name)["a"] for name in ("run", "file", "raw"))
    assert of_file["flags"] == of_run["flags"]
    assert {flag["about"] for flag in of_file["flags"]} == {"mask"}  # the volumes of its references
    assert of_file["post_processing"] == of_run["post_processing"]
    assert of_file["structures"] == of_run["structures"]
    assert not raw["post_processing"]
    assert raw["structures"]["foreground"]["objects"] > 1
    assert of_file["predicted_dice"] == of_run["predicted_dice"]
    assert of_file["predicted_dice"]["from"] == "copies"
    assert raw["predicted_dice"] is None  # a graph has one head, and no copies were asked for
    page = (tmp_path / "file" / "report.html").read_text()
    assert of_file["flags"][0]["text"] in page


def test_a_file_holds_what_its_run_knows_and_nothing_where_it_knows_nothing(run, exported, image, tmp_path):
    (member,) = read_bundle(exported.file).pipeline["members"]
    assert member["calibration"]["structures"]["seen"]["foreground"]["cases"] == SEEN["foreground"]["cases"]
    assert member["calibration"]["temperature"]["value"] == 2.5
    assert load(exported.file).calibration.rules == {"foreground": Runtimes(largest=True)}
    plain = run_folder(tmp_path / "plain", 0, fingerprint=TOLD)
    made = ulna.export(plain, out=tmp_path / "plain.ulna")
    assert "calibration" not in read_bundle(made.file).pipeline["members"][0]
    assert load(made.file).calibration is None
    assert ulna.info(exported.file).card["export"]["post_processing"] == {"foreground": "largest object"}
    assert "post_processing" not in ulna.info(made.file).card["export"]
    left_out = ulna.load(made.file)
    assert "structures" in left_out.trust(left_out(image))["left_out"]


def test_the_dice_to_expect_is_told_from_mirrored_copies(run, exported, image, tmp_path):
    for name, what in (("run", run), ("file", exported.file)):
        ulna.predict(what, image, out=tmp_path / name, tta=True)
    of_run, of_file = (rows_of(tmp_path / name)["a"]["predicted_dice"] for name in ("run", "file"))
    assert of_file == of_run
    assert of_file["from"] == "mirrored"
    masks = [np.asarray(Image.open(tmp_path / name / "a.png")) for name in ("run", "file")]
    assert np.array_equal(*masks)


def test_several_runs_clean_what_all_of_them_chose_and_scale_nothing(image, tmp_path):
    runs = [run_folder(tmp_path / f"run{n}", 0, fingerprint=TOLD) for n in range(2)]
    calibrated(runs[0], post_processing=kept(largest=True, holes=True), temperature=WARM)
    calibrated(runs[1], post_processing=kept(largest=True), temperature=WARM)
    made = ulna.export(runs, out=tmp_path / "both.ulna")
    own, of_runs = load(made.file), ulna.load(runs)
    assert made.parity.identical >= 0.999
    assert own.calibration.rules == {"foreground": Runtimes(largest=True)}
    assert own.calibration.temperature is None
    assert ulna.load(made.file).calibration.rules == of_runs.calibration.rules == {"foreground": Rule(largest=True)}
    assert ulna.load(made.file).calibration.temperature is None
    of_file = ulna.load(made.file)
    told = of_file.trust(of_file(image))["predicted_dice"]
    assert told["from"] == "folds"
    assert told["mean"]["dice"] == 1  # both have the same weights


def test_an_image_with_other_channels_is_refused_before_its_memory_is_asked_for():
    """What follows compares its channels with those of the training."""
    two = (Normalization(kind="zscore"),) * 2
    plan = make(in_channels=2, channel_names=("a", "b"), normalization=two)
    held = {"members": [{"plan": plan.model_dump(mode="json")}]}
    exported = ExportedSegmenter(SimpleNamespace(members=[None], networks=[None]), plan, Recipe(), held, None)
    with pytest.raises(ulna.UsageError, match="1 channel; this model reads 2"):
        exported.forecast(Volume(np.zeros((1, 32, 40), np.float32), (1.0, 1.0)), probabilities=False)


def test_masks_that_are_cleaned_otherwise_are_not_exported(run, tmp_path, monkeypatch):
    """The comparison is of masks as they are written."""
    monkeypatch.setattr(exporting, "_calibrated", lambda _: {})
    with pytest.raises(ulna.UsageError, match="would not predict as the run does"):
        ulna.export(run, out=tmp_path / "a.ulna")
