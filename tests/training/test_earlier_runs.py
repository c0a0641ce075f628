"""Runs that another version began, whose seeds stand for other samples: they predict, and do not go on."""

import json

import numpy as np
import pytest

import ulna
from tests.training.tiny import TINY
from ulna.errors import UsageError
from ulna.study import same_study
from ulna.system.files import Tensors, read_state, read_tensors, write_tensors
from ulna.training.checkpoint import LAST, TRAINING_FORMAT, begun_format
from ulna.training.train import train


@pytest.fixture
def run(discs, tmp_path):
    return train(discs, model="unet", out=tmp_path / "run", epochs=1, set=TINY).folder


def begun_by(run, number):
    """Its checkpoints as of another format; None: as written before there was a number."""
    for path in (run / "checkpoints").glob("*.safetensors"):
        tensors, state = read_tensors(path)
        state.pop("format")
        write_tensors(path, Tensors(tensors, state if number is None else {**state, "format": number}))


def test_a_checkpoint_says_its_format(run):
    assert read_state(run / "checkpoints" / LAST)["format"] == TRAINING_FORMAT == begun_format(run / "checkpoints")


@pytest.mark.parametrize(
    ("number", "who"), [(None, r"an earlier ulna \(training format 1, now 2\)"), (9, "a later ulna")]
)
def test_a_run_of_another_version_does_not_go_on_and_predicts(run, discs, number, who):
    begun_by(run, number)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        UsageError, match=rf"{who}.*other samples.*train anew: ulna train .*--model unet --out NEW_FOLDER"
    ):
        train(discs, out=run, resume=True, epochs=2)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert ulna.load(run)(np.zeros((32, 40))).mask.shape == (32, 40)


@pytest.mark.slow
def test_a_damaged_checkpoint_does_not_hide_the_format(run):
    begun_by(run, None)
    (run / "checkpoints" / "next.safetensors").write_bytes(b"torn")
    assert begun_format(run / "checkpoints") == 1


def test_a_run_without_checkpoints_has_no_format(tmp_path):
    assert begun_format(tmp_path) is None


def test_a_study_does_not_mix_training_formats(tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    stored = dict.fromkeys(("data", "splits", "folds", "match", "plan", "recipes", "architectures"))
    stored |= {"plan": {"patch": [32, 32], "batch": 2}, "recipes": {}, "architectures": {}}
    (out / same_study.STUDY_FILE).write_text(json.dumps({**stored, "format": same_study.PLAN_FORMAT}))
    with pytest.raises(UsageError, match=r"training format 1, now 2.*another --out"):
        same_study.check_same(out, same_study.stored_study(out), {})
