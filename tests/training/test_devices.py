"""A training by several processes: the same as by one, resumed by another number, and ended whole whatever happens."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.training.tiny import TINY, rows_of
from ulna.errors import Interrupted, UsageError
from ulna.training import loop as room
from ulna.training.checkpoint import load_checkpoint
from ulna.training.crew import _Other
from ulna.training.train import train

SETTINGS = (*TINY, "planning.batch=3", "optimizer.kind=sgd")
PROC = Path("/proc")
LISTENS = "0A"
needs_proc = pytest.mark.skipif(not (PROC / "self/task").exists(), reason="asks Linux which processes there are")


def children_of(pid):
    return [
        int(one) for task in (PROC / str(pid) / "task").iterdir() for one in (task / "children").read_text().split()
    ]


def listening(pid):
    """The addresses that a process listens at, as the system writes them."""
    sockets = {str(one.readlink()) for one in (PROC / str(pid) / "fd").iterdir() if one.exists() or one.is_symlink()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in (PROC / "net" / name).read_text().splitlines()[1:]]
    return [line[1].split(":")[0] for line in lines if line[3] == LISTENS and f"socket:[{line[9]}]" in sockets]


class Stopped(BaseException):
    pass


@pytest.fixture
def after(monkeypatch):
    """`after(epoch, act)`: what is done when an epoch has ended, and is saved."""

    def set_(epoch, act):
        finish = room.Loop._finish_epoch

        def finished(loop, *arguments):
            finish(loop, *arguments)
            if loop.state.epoch == epoch:
                loop._save()
                act()

        monkeypatch.setattr(room.Loop, "_finish_epoch", finished)
        return lambda: monkeypatch.setattr(room.Loop, "_finish_epoch", finish)

    return set_


@needs_proc
@pytest.mark.parametrize("devices", [(2,), pytest.param((1, 2, 1), marks=pytest.mark.slow)])
def test_a_run_of_several_devices_is_that_of_one_whatever_their_number_in_each_epoch(discs, tmp_path, after, devices):
    seen, before = {}, children_of(os.getpid())

    def stop():
        others = [one for one in children_of(os.getpid()) if one not in before]
        seen["others"] = [*seen.get("others", []), *others]
        seen["listening"] = [place for pid in (os.getpid(), *others) for place in listening(pid)] or seen.get(
            "listening"
        )
        raise Stopped

    def go_on(run, epoch, count, resume):
        undo = after(epoch, stop)
        with pytest.raises(Stopped):
            train(discs, out=tmp_path / run, devices=count, model="unet", epochs=3, set=SETTINGS, resume=resume)
        undo()
        return tmp_path / run

    whole = go_on("whole", len(devices), 1, False)
    for epoch, count in enumerate(devices, start=1):
        run = go_on("run", epoch, count, epoch > 1)
    assert len(seen["others"]) == 1 and not (PROC / str(seen["others"][0])).exists()
    assert seen["listening"] and {*seen["listening"]} == {"0100007F"}  # 127.0.0.1
    for row, expected in zip(rows_of(run), rows_of(whole), strict=True):
        assert row["epoch"] == expected["epoch"] and row["lr"] == expected["lr"]
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=1e-4)
        assert float(row["val_dice"]) == pytest.approx(float(expected["val_dice"]), abs=5e-3)
    one, other = (load_checkpoint(folder / "checkpoints") for folder in (run, whole))
    for name, tensor in other.tensors.items():
        if name.startswith("network."):
            torch.testing.assert_close(one.tensors[name], tensor, rtol=1e-3, atol=2e-5)
    log = (run / "log.txt").read_text()
    assert "devices: 2, which share each batch" in log
    assert ("devices 2 before, 1 now" in log) == (len(devices) > 1)


@pytest.mark.slow
@needs_proc
def test_a_process_that_was_killed_ends_all(discs, tmp_path, after):
    others = []

    def kill():
        others.extend(children_of(os.getpid()))
        os.kill(others[1], signal.SIGKILL)

    undo = after(1, kill)
    with pytest.raises(UsageError, match=r"process 3 of 3 .* by signal 9.*memory.*--resume --devices 3"):
        train(discs, model="unet", out=tmp_path / "run", epochs=3, devices=3, set=SETTINGS)
    undo()
    assert len(others) == 2 and not any((PROC / str(pid)).exists() for pid in others)
    assert len(rows_of(tmp_path / "run")) == 1
    run = train(discs, out=tmp_path / "run", resume=True)
    assert run.summary["epochs"] == 3 and run.summary["devices"] == 1


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_leaves_one_checkpoint(discs, tmp_path, after, number):
    others = []

    def stop():
        others.extend(children_of(os.getpid()))
        for pid in (*others, os.getpid()):  # as a terminal, or a scheduler, may do
            os.kill(pid, number)

    after(1, stop)
    with pytest.raises(Interrupted, match="--resume --devices 2") as stopped:
        train(discs, model="unet", out=tmp_path / "run", epochs=3, devices=2, set=SETTINGS)
    assert stopped.value.signal == number
    assert others and not any((PROC / str(pid)).exists() for pid in others)
    assert load_checkpoint(tmp_path / "run" / "checkpoints").state["loop"]["epoch"] == 1


@pytest.mark.slow
@needs_proc
def test_nothing_is_left_of_a_training_whose_first_process_was_killed(discs, tmp_path):
    words = [
        "train",
        str(discs),
        "--model",
        "unet",
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "500",
        "--devices",
        "2",
    ]
    words += [word for change in SETTINGS for word in ("--set", change)]
    first = subprocess.Popen([sys.executable, "-m", "ulna", "--quiet", *words])
    try:
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert first.poll() is None
            time.sleep(0.1)
        others = children_of(first.pid)
    finally:
        first.kill()
        first.wait()
    assert others
    until = time.monotonic() + 60
    while any(alive(pid) for pid in others):
        assert time.monotonic() < until, "an orphan is left"
        time.sleep(0.1)
    run = train(discs, out=tmp_path / "run", resume=True, epochs=1)
    assert json.loads((run.folder / "summary.json").read_text())["devices"] == 1


def alive(pid):
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "error", "defect", "kind", "told"),
    [
        (2, "disc1: has no label map", False, UsageError, "^disc1: has no label map$"),  # as if there were one process
        (1, "Traceback: a line", True, RuntimeError, "process 2 of 2 .* exit code 1; it said:\nTraceback: a line"),
        (3, "", False, RuntimeError, "exit code 3; it said:\nlast words"),
        (-9, "", False, UsageError, "process 2 of 2 .* by signal 9, most likely .* with: ulna train --resume"),
        (-15, "", False, UsageError, "by signal 15; the training goes on from its last checkpoint"),
    ],
)
def test_why_a_process_has_gone_is_told(code, error, defect, kind, told):
    other = object.__new__(_Other)
    other.rank, other.error, other.defect = 1, error, defect
    other.process, other._told = SimpleNamespace(returncode=code, pid=7), io.BytesIO(b"last words")
    why = other.why(2, "ulna train --resume")
    assert type(why) is kind and re.search(told, str(why))
