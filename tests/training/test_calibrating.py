"""The end of a training: calibration.json, what the summary says of it, and what predict makes of it."""

import json

import numpy as np
import pytest

import ulna
from tests.discs import draw_discs
from ulna.inference.segmenter import Segmenter
from ulna.planning.choosing import choose
from ulna.system.outputs import file_digest
from ulna.training import calibrating
from ulna.trust.calibration import read_calibration

SMALL = ("architecture.base_channels=4", "training.min_steps=15", "optimizer.lr=1e-2", "training.precision=fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_discs(
        tmp_path_factory.mktemp("discs"),
        22, seed=1, size=(32, 40), smallest=4, contrast=60, noise=25, foreground=255, train=8, val=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    supervised = ("architecture.deep_supervision=true", "architecture.levels=3")
    out = tmp_path_factory.mktemp("runs") / "run"
    return ulna.train(data, model="unet", out=out, epochs=3, set=(*SMALL, *supervised))


def test_a_finished_training_is_calibrated_and_says_so(run):
    found = read_calibration(run.folder)
    told = run.summary["trust"]
    assert found.weights == file_digest(run.folder / "weights.safetensors")
    assert found.cases == told["validation_cases"] == 8
    assert found.temperature.ece_after <= found.temperature.ece_before
    assert told["temperature"]["ece_before"] == found.temperature.ece_before
    seen = found.structures.seen["foreground"]
    assert found.structures.cases == seen.cases == 8 and seen.objects_max == 1
    assert 40 < seen.volume_min < seen.volume_max < 260  # pixels of discs with radii of 4 to 8
    assert told["predicted_dice"]["heads"]["cases"] == 8
    assert told["predicted_dice_on_test"]["cases"] == 6


def test_the_error_on_test_cases_is_that_of_what_predict_says(run, data, tmp_path):
    made = ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    scores = ulna.evaluate(tmp_path / "masks", data)
    apart = []
    for row in made.cases:
        told = row["trust"]["predicted_dice"]
        assert told["from"] == "heads" and told["mean"]["low"] <= told["mean"]["dice"] <= told["mean"]["high"]
        apart.append(abs(told["mean"]["dice"] - scores.case_dice(row["case"])))
    error = run.summary["trust"]["predicted_dice_on_test"]["mean_absolute_error"]
    assert np.mean(apart) == pytest.approx(error, abs=2e-4)  # four digits are written


def test_the_final_figures_are_those_of_what_predict_writes(run, data, tmp_path):
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    scores = ulna.evaluate(tmp_path / "masks", data)
    assert scores.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])


@pytest.mark.slow
def test_a_longer_training_is_calibrated_anew(run, data, tmp_path):
    import shutil

    folder = shutil.copytree(run.folder, tmp_path / "run")
    before = read_calibration(folder)
    longer = ulna.train(data, out=folder, epochs=5, resume=True)
    assert read_calibration(longer.folder).weights == file_digest(folder / "weights.safetensors")
    assert before.weights == read_calibration(run.folder).weights


@pytest.mark.slow
def test_mirrored_copies_are_calibrated_with_and_without_heads(run, data, tmp_path):
    plain = ulna.train(
        data, model="unet", out=tmp_path / "run", epochs=2, set=(*SMALL, "architecture.deep_supervision=false")
    )
    assert set(read_calibration(plain.folder).dice) == {"mirrored", "copies"}
    assert set(read_calibration(run.folder).dice) == {"heads", "mirrored", "copies"}
    assert "predicted_dice_on_test" not in plain.summary["trust"]  # the figures are made without mirrored copies


def test_few_cases_and_no_time_bound_what_it_costs(run, data, tmp_path, monkeypatch):
    from ulna.data.layout.dataset import Dataset

    dataset = Dataset.from_folder(data).of_dims(2)
    split = json.loads((run.folder / "splits.json").read_text())
    parts = [dataset.cases_of(split[part]) for part in ("train", "val")]
    segmenter = Segmenter.load(run.folder)
    bare = Segmenter(segmenter.network, segmenter.plan, segmenter.recipe)
    monkeypatch.setattr(calibrating, "MOST_CASES", 3)
    monkeypatch.setattr(calibrating, "MOST_MIRRORED", 3)
    found = calibrating.calibrate(tmp_path_with_weights(run, tmp_path), bare, *parts, most_s=60.0)
    assert found.cases == 3 and not found.cut_short and not found.dice  # five cases tell of Dice
    monkeypatch.setattr(calibrating, "LEAST_REFERENCES", 5)
    found = calibrating.calibrate(tmp_path, bare, *parts, most_s=0.0)
    assert (found.cases, found.structures.cases) == (1, 5) and found.cut_short


def test_a_limit_of_hours_bounds_the_calibration_and_counts_its_predictions(run):
    limited = choose(model="unet", recipe=None, set=("training.max_hours=0.01",)).training
    assert calibrating.calibration_s(limited, elapsed_s=30.0) == pytest.approx(3.6)
    free = choose(model="unet", recipe=None, set=()).training
    assert calibrating.calibration_s(free, elapsed_s=30.0) == 60 and calibrating.calibration_s(free, 1000.0) == 100
    plan, recipe = (getattr(Segmenter.load(run.folder), name) for name in ("plan", "recipe"))
    ways = 2 ** len(plan.mirror_axes)
    assert calibrating.calibrating_predictions(plan, recipe, 8) == 8 + 8 * ways
    mirrored = recipe.replaced(inference=recipe.inference.replaced(tta=True))
    assert calibrating.calibrating_predictions(plan, mirrored, 100) == 40 * ways


def tmp_path_with_weights(run, folder):
    (folder / "weights.safetensors").write_bytes((run.folder / "weights.safetensors").read_bytes())
    return folder


@pytest.mark.slow
def test_folds_have_one_each_and_the_summary_lists_them(data, tmp_path):
    (tmp_path / "data").mkdir()
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).symlink_to(data / folder)
    run = ulna.train(tmp_path / "data", model="unet", out=tmp_path / "run", epochs=1, folds=2, set=SMALL)
    for fold in run.summary["folds"]:
        assert fold["trust"]["validation_cases"] > 0
        assert read_calibration(run.folder / fold["run"]) is not None
    assert ulna.load(run.folder).calibration is not None
