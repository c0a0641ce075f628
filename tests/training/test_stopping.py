"""A training that is stopped in the middle of an epoch goes on from the step where it stopped, exactly."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.training.tiny import TINY, rows_of
from ulna.errors import Interrupted, UsageError
from ulna.training import loop as room
from ulna.training import single as verb
from ulna.training.checkpoint import load_checkpoint
from ulna.training.train import train

OPTIONS = {"model": "unet", "epochs": 3, "set": (*TINY, "architecture.conv.double_conv.dropout=0.2")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stop_at", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_a_signal_stops_at_the_next_step_and_the_rest_is_the_same(discs, tmp_path, monkeypatch, number, stop_at):
    whole, part = train(discs, out=tmp_path / "whole", **OPTIONS), tmp_path / "part"
    step, count = room.Loop._step, 0

    def signalled(self, *arguments):
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stopped:
        patch.setattr(room.Loop, "_step", signalled)
        train(discs, out=part, **OPTIONS)
    assert count == stop_at
    assert stopped.value.signal == number
    assert f"--out {part} --resume" in stopped.value.resume

    torch.manual_seed(99)
    train(discs, out=part, resume=True)
    one, two = (load_checkpoint(folder / "checkpoints") for folder in (whole.folder, part))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    for a, b in zip(rows_of(whole.folder), rows_of(part), strict=True):
        assert {**a, "seconds": ""} == {**b, "seconds": ""}


def test_the_command_line_exits_with_143_and_prints_the_command(discs, tmp_path):
    run = tmp_path / "run"
    settings = [part for assignment in TINY for part in ("--set", assignment)]
    command = [
        sys.executable,
        "-m",
        "ulna.cli.main",
        "train",
        str(discs),
        "--model",
        "unet",
        "--out",
        str(run),
        *settings,
    ]
    process = subprocess.Popen([*command, "--epochs", "100000"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "--resume" in err
    assert "Traceback" not in err
    assert load_checkpoint(run / "checkpoints") is not None


@pytest.mark.slow
def test_with_resume_only_the_length_can_change(discs, tmp_path):
    run = train(discs, out=tmp_path / "r", **OPTIONS)
    with pytest.raises(UsageError, match=r"training\.seed is 0 there, 3 now, optimizer\.lr is 0\.01 there, 1\.0 now"):
        train(discs, out=run.folder, resume=True, seed=3, set=("optimizer.lr=1",))


@pytest.mark.slow
def test_an_early_stopped_run_goes_on_when_it_is_given_more_epochs(discs, tmp_path):
    still = (*TINY, "optimizer.lr=1e-12", "training.patience=2")
    first = train(discs, model="unet", out=tmp_path / "r", epochs=20, set=still)
    longer = train(discs, out=first.folder, resume=True, epochs=30)
    assert longer.summary["epochs"] > first.summary["epochs"]


def test_a_training_that_is_stopped_while_it_reads_its_data_leaves_nothing(discs, tmp_path, monkeypatch):
    def stopped(*_):
        signal.raise_signal(signal.SIGINT)
        return "{}"

    monkeypatch.setattr(verb, "describe", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(discs, model="unet", out=tmp_path / "run", epochs=1, set=TINY)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run").exists()
