"""What predict says of a case: flags, volumes, a predicted Dice; and post-processing that is applied where it was chosen."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import ulna
from tests.inference.test_predict import run_folder
from ulna.data.volume import Volume
from ulna.errors import PartialFailure, UsageError
from ulna.inference.spread import Agreement, count_agreement
from ulna.recipe import Labels
from ulna.system.outputs import file_digest
from ulna.trust.calibration import CALIBRATION_FILE, Calibration
from ulna.trust.choosing import Kept
from ulna.trust.cleaning import Rule
from ulna.trust.dice import Line, Lines
from ulna.trust.structures import Structures
from ulna.trust.temperature import Temperature

VALUES = {"width": {"min": 2.0, "max": 2.5}, "low": {"min": 0.0, "max": 0.1}, "middle": {"min": 0.3, "max": 0.7}}
LENGTHS = {"min": (24.0, 24.0), "median": (32.0, 32.0), "max": (50.0, 50.0)}
TOLD = {"extent": LENGTHS, "values": (VALUES,), "cases": 50}
SEEN = {
    "foreground": {"cases": 50, "volume_min": 5, "volume_max": 9, "objects_max": 1, "smallest_object": 4, "border": 0}
}


def kept(**rule):
    return {"foreground": Kept(rule=Rule(**rule), dice_before=0.8, dice_after=0.9, cases=9, changed=9, p=0.001)}


def calibrated(run, **changes):
    """The run with a calibration.json of its weights."""
    fields = {
        "weights": file_digest(run / "weights.safetensors"),
        "cases": 9,
        "seconds": 0.0,
        "structures": Structures(cases=50, unit="px", seen=SEEN),
    }
    Calibration(**{**fields, **changes}).write(run)
    return run


@pytest.fixture
def run(tmp_path):
    return run_folder(tmp_path / "run", 0, fingerprint=TOLD)


@pytest.fixture
def images(tmp_path):
    """Two like those of the training, and one that is far larger."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (32, 40)), ("b", (28, 32)), ("odd", (150, 160))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def rows_of(out):
    return {row["case"]: row["trust"] for row in json.loads((out / "predict.json").read_text())["cases"]}


def test_a_case_unlike_the_training_is_said_in_one_line_and_stands_in_the_record(run, images, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ulna")
    ulna.predict(run, images, out=tmp_path / "out")
    told = rows_of(tmp_path / "out")
    assert [flag["what"] for flag in told["odd"]["flags"]] == ["field of view"]
    assert not told["a"]["flags"] and not told["b"]["flags"]
    said = [line for line in caplog.messages if "unlike the training data" in line]
    assert len(said) == 1 and said[0].startswith("note: odd: ")
    assert told["a"]["format"] == 1
    assert {"intensity", "field of view", "spacing"} <= set(told["a"]["compared"])
    assert {"modality", "structures", "predicted Dice"} <= set(told["a"]["left_out"])


def test_strict_refuses_that_case_alone_before_it_is_computed(run, images, tmp_path):
    with pytest.raises(PartialFailure) as failure:
        ulna.predict(run, images, out=tmp_path / "out", strict=True)
    assert "odd.png: unlike the training data: field of view is" in str(failure.value)
    assert not (tmp_path / "out" / "odd.png").exists() and (tmp_path / "out" / "a.png").exists()
    with pytest.raises(UsageError, match="leave --strict out"):
        ulna.predict(run, images / "odd.png", out=tmp_path / "alone", strict=True)
    assert not list((tmp_path / "alone").glob("*.png"))
    done = ulna.predict(run, images, out=tmp_path / "out")  # the masks that are there count without --strict, too
    assert sorted(done.skipped) == ["a", "b"]


def test_a_mask_is_measured_and_flagged_by_what_the_training_had(run, images, tmp_path):
    ulna.predict(calibrated(run), images / "a.png", out=tmp_path / "out")
    told = rows_of(tmp_path / "out")["a"]
    mask = np.asarray(Image.open(tmp_path / "out" / "a.png")) > 0
    _, count = ndimage.label(mask, np.ones((3, 3)))
    found = told["structures"]["foreground"]
    assert (found["volume"], found["objects"], told["unit"]) == (mask.sum(), count, "px")
    flags = {flag["what"]: flag for flag in told["flags"]}
    assert (
        flags["larger"]["structure"] == "foreground" and "training references have at most 9" in flags["larger"]["text"]
    )


def test_post_processing_is_applied_recorded_and_can_be_left_out(run, images, tmp_path):
    ulna.predict(run, images / "a.png", out=tmp_path / "before")
    calibrated(run, post_processing=kept(largest=True))
    ulna.predict(run, images / "a.png", out=tmp_path / "out")
    ulna.predict(run, images / "a.png", out=tmp_path / "raw", no_post_processing=True)
    before, after, raw = (np.asarray(Image.open(tmp_path / f / "a.png")) for f in ("before", "out", "raw"))
    numbers, count = ndimage.label(before, np.ones((3, 3)))
    assert count > 1 and np.array_equal(raw, before)
    largest = 1 + np.argmax(np.bincount(numbers.ravel())[1:])
    assert np.array_equal(after > 0, numbers == largest)
    removed = rows_of(tmp_path / "out")["a"]["post_processing"]["foreground"]
    assert removed == {"removed": int((before > 0).sum() - (after > 0).sum()), "filled": 0}
    assert np.array_equal(ulna.load(run)(images / "a.png").mask, after > 0)
    assert np.array_equal(ulna.load(run, post_processing=False)(images / "a.png").mask, before > 0)
    with pytest.raises(UsageError, match="other options"):  # masks of both kinds are not mixed
        ulna.predict(run, images / "a.png", out=tmp_path / "out", no_post_processing=True)


def test_probabilities_are_calibrated_and_no_answer_changes(run, images):
    plain = ulna.load(run)(images / "a.png")
    calibrated(run, temperature=Temperature(value=2.5, ece_before=0.1, ece_after=0.05, cases=5, voxels=9))
    told = ulna.load(run)(images / "a.png")
    logits = torch.from_numpy(plain.probabilities).logit(1e-7)
    np.testing.assert_allclose(told.probabilities, (logits / 2.5).sigmoid().numpy(), atol=1e-6)
    assert np.array_equal(told.mask, plain.mask)


def test_a_calibration_of_other_weights_is_not_used_and_a_damaged_one_is_named(run, images, tmp_path):
    calibrated(run, weights="0" * 64, post_processing=kept(largest=True))
    assert ulna.load(run).calibration is None
    (run / CALIBRATION_FILE).write_text('{"format": 7}')
    with pytest.raises(UsageError, match=r"calibration.json: .*format"):
        ulna.load(run)


def test_a_run_without_it_keeps_the_digest_of_its_masks(run, images, tmp_path):
    ulna.predict(run, images / "a.png", out=tmp_path / "out")
    assert ulna.predict(run, images / "a.png", out=tmp_path / "out").skipped == ("a",)
    calibrated(run)
    with pytest.raises(UsageError, match="another run"):
        ulna.predict(run, images / "a.png", out=tmp_path / "out")


def test_mirrored_copies_predict_dice_only_where_they_are_made(run, images, tmp_path):
    line = Line(intercept=0.0, slope=1.0, within=0.1, error=0.05, error_of_mean=0.1, cases=9)
    calibrated(run, dice={"mirrored": Lines(mean=line, classes={"foreground": line})})
    ulna.predict(run, images / "a.png", out=tmp_path / "plain")
    assert rows_of(tmp_path / "plain")["a"]["predicted_dice"] is None
    ulna.predict(run, images / "a.png", out=tmp_path / "tta", tta=True)
    told = rows_of(tmp_path / "tta")["a"]["predicted_dice"]
    assert told["from"] == "mirrored" and told["calibrated"]
    segmenter = ulna.load(run)
    volume = segmenter._volume(images / "a.png")
    first = segmenter.probabilities(volume)[0] > 0.5
    pairs = []
    for axes in ((1,), (2,), (1, 2)):
        flipped = Volume(np.flip(volume.array, axes).copy(), volume.spacing)
        pairs.append(segmenter.probabilities(flipped).flip(axes)[0] > 0.5)
    agreement = 2 * sum(int((first & p).sum()) for p in pairs) / sum(int(first.sum() + p.sum()) for p in pairs)
    assert told["mean"]["dice"] == pytest.approx(agreement, abs=1e-3)
    assert told["mean"]["high"] - told["mean"]["dice"] == pytest.approx(0.1, abs=1e-3)


def test_several_runs_say_how_much_they_agree_without_an_interval(images, tmp_path):
    runs = [run_folder(tmp_path / f"run{n}", n, fingerprint=TOLD) for n in range(3)]
    masks = [ulna.load(one)(images / "a.png").mask > 0 for one in runs]
    result = ulna.load(runs)(images / "a.png")
    told = ulna.load(runs).trust(result)["predicted_dice"]
    pairs = [(0, 1), (0, 2), (1, 2)]
    common = sum(int((masks[a] & masks[b]).sum()) for a, b in pairs)
    both = sum(int(masks[a].sum() + masks[b].sum()) for a, b in pairs)
    assert told["from"] == "folds" and not told["calibrated"]
    assert told["mean"] == {"dice": round(2 * common / both, 4), "low": None, "high": None}


def test_runs_together_clean_what_all_of_them_chose(images, tmp_path):
    runs = [run_folder(tmp_path / f"run{n}", n, fingerprint=TOLD) for n in range(2)]
    calibrated(runs[0], post_processing=kept(largest=True, holes=True))
    assert ulna.load(runs).calibration is None
    calibrated(runs[1], post_processing=kept(largest=True))
    assert ulna.load(runs).calibration.rules == {"foreground": Rule(largest=True)}


def test_agreement_of_a_coarser_answer_is_counted_on_its_own_grid():
    labels = Labels(names=("background", "a", "b"))
    fine = torch.nn.functional.one_hot(torch.tensor([[[1, 1, 2, 2, 0], [1, 1, 2, 2, 0]]]), 3).movedim(-1, 1).float()
    coarse = torch.nn.functional.one_hot(torch.tensor([[[1, 1, 0]]]), 3).movedim(-1, 1).float()
    agreement = Agreement(labels)
    agreement.add(count_agreement(fine, coarse, labels))
    assert agreement.by_class() == {"a": pytest.approx(2 / 3), "b": 0.0}
    agreement.add(count_agreement(fine, fine, labels))
    assert agreement.by_class() == {"a": pytest.approx((2 + 8) / (3 + 8)), "b": pytest.approx(8 / 9)}
