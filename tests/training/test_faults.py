"""Writes, syncs and renames that fail, and disks that are full: said in one sentence, nothing half-written, nothing lost."""

import errno
import json
import os

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.share import share
from tests.training.test_kills import resume, same, start
from tests.training.victims import Job, hurt
from ulna.errors import UsageError
from ulna.system.files import Tensors, read_tensors
from ulna.training.checkpoint import load_checkpoint, save_checkpoint


def content(value):
    return Tensors({"a": torch.full((3,), value)}, {"step": value})


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_the_newest_checkpoint_survives_every_operation_that_fails(tmp_path, monkeypatch, operation):
    works, failed = getattr(os, operation), []
    for number in range(1, 7):
        folder = tmp_path / str(number)
        for value in (1.0, 2.0):
            save_checkpoint(folder, content(value))
        calls = iter([False] * (number - 1) + [True])

        def fails(*arguments, calls=calls):
            if next(calls, False):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return works(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, fails)
            try:
                save_checkpoint(folder, content(3.0))
            except UsageError as error:
                assert "No space left on device" in str(error)
                failed.append(number)
        assert load_checkpoint(folder).state["step"] in ((2.0, 3.0) if number in failed else (3.0,))
        assert not [path for path in folder.iterdir() if path.name.startswith(".tmp-")]
        save_checkpoint(folder, content(4.0))
        assert load_checkpoint(folder).state["step"] == 4.0
    assert failed == {"fsync": [1, 2, 3, 4], "replace": [1, 2, 3]}[operation]  # all of them


def test_a_damaged_last_checkpoint_never_takes_the_place_of_a_whole_one(tmp_path, monkeypatch):
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, content(value))
    (tmp_path / "last.safetensors").write_bytes(b"damaged")
    works, count = os.replace, 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 3:  # the damaged one lies where the previous one was
            raise KeyboardInterrupt
        return works(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        save_checkpoint(tmp_path, content(3.0))
    assert load_checkpoint(tmp_path).state["step"] == 3.0


def whole_files(folder):
    """Reads every file of a folder, whatever its kind."""
    for path in folder.rglob("*"):
        assert not path.name.startswith(".tmp-")
        if path.suffix == ".safetensors":
            read_tensors(path)
        elif path.suffix == ".png":
            np.asarray(Image.open(path))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())
        elif path.suffix == ".csv":
            assert len({len(line.split(",")) for line in path.read_text().splitlines()}) == 1


def reported(outcome, *codes):
    assert outcome.code in codes, outcome.err
    assert "Traceback" not in outcome.err
    assert "Logging error" not in outcome.err
    assert "cannot be written" in outcome.err


@pytest.mark.slow(longest=True)
def test_every_operation_of_a_training_can_fail(discs, tmp_path):
    tiny = ["--set", "training.samples_per_epoch=4", "--set", "training.min_steps=2"]

    def begin(run):
        return [*start(discs, run, epochs=1), *tiny]

    (reference,) = hurt([Job(begin(tmp_path / "whole"), str(tmp_path / "whole"))], tmp_path)
    assert reference.code == 0, reference.err
    points = [(operation, n, "fail") for operation in ("fsync", "rename") for n in _all(reference, operation)]
    points += [("write", n, ("fail", "full")[n % 2]) for n in _all(reference, "write")]
    points += [("file size", size, "") for size in (0, 100, 1000, 5000, 20_000, 50_000)]
    points = share(points, 4)
    runs = [tmp_path / f"run{number}" for number in range(len(points))]
    outcomes = hurt([Job(begin(run), str(run), *point) for run, point in zip(runs, points, strict=True)], tmp_path)
    again = []
    for run, point, outcome in zip(runs, points, outcomes, strict=True):
        reported(outcome, *((0, 2) if point[0] == "write" else (2,)))  # a line of log.txt is no reason to stop
        assert outcome.code == 2 or "log.txt" in outcome.err
        whole_files(run)
        again.append(Job(resume(discs, run) if (run / "recipe.yaml").exists() else begin(run), str(run)))
    for run, outcome in zip(runs, hurt(again, tmp_path), strict=True):
        assert outcome.code == 0, outcome.err
        same(tmp_path / "whole", run)


@pytest.mark.slow
def test_every_operation_of_a_prediction_and_an_evaluation_can_fail(discs, tmp_path):
    run, masks = tmp_path / "run", tmp_path / "masks"

    def predict(out):
        return ["predict", str(run), str(discs), "--out", str(out), "--split", "val", "--probabilities"]

    def evaluate(out):
        return ["evaluate", str(masks), str(discs), "--out", str(out)]

    first = [start(discs, run, epochs=1), predict(masks), evaluate(tmp_path / "scores")]
    folders = [run, masks, tmp_path / "scores"]
    done = hurt([Job(words, str(folder)) for words, folder in zip(first, folders, strict=True)], tmp_path)
    assert [outcome.code for outcome in done] == [0, 0, 0]
    for verb, reference, codes in ((predict, done[1], (2, 3)), (evaluate, done[2], (2,))):
        points = [(operation, n, "fail") for operation in ("fsync", "rename") for n in _all(reference, operation)]
        points += [("write", n, ("fail", "full")[n % 2]) for n in _all(reference, "write")] + [("file size", 30, "")]
        points = share(points, 3)
        outs = [tmp_path / f"{verb.__name__}{number}" for number in range(len(points))]
        jobs = [Job(verb(out), str(out), *point) for out, point in zip(outs, points, strict=True)]
        for out, outcome in zip(outs, hurt(jobs, tmp_path), strict=True):
            reported(outcome, *codes)
            whole_files(out)


def _all(outcome, operation):
    return range(1, outcome.counts[operation] + 1)
