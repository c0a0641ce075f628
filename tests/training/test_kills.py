"""A training that is killed at any moment, or stopped by a signal, goes on to the same bits."""

import random
import signal

import pytest
import torch

from tests.share import share
from tests.training.victims import Job, hurt
from ulna.system.files import read_tensors
from ulna.training.checkpoint import load_checkpoint

SETTINGS = (
    "architecture.channels=[2, 4]",
    "architecture.conv.double_conv.dropout=0.2",
    "planning.batch=2",
    "training.min_steps=3",
    "training.checkpoint_minutes=0",
    "optimizer.lr=1e-2",
)


def start(data, run, epochs=2):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", str(data), "--model", "unet", "--out", str(run), "--epochs", str(epochs), *settings]


def resume(data, run):
    return ["train", str(data), "--out", str(run), "--resume"]


def same(whole, part):
    """Weights, optimiser state, random state and metrics.csv, to the bit."""
    one, two = (load_checkpoint(run / "checkpoints") for run in (whole, part))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert one.state["optimizer"] == two.state["optimizer"]
    for name in ("weights.safetensors", "metrics.csv", "recipe.yaml", "plan.yaml", "splits.json"):
        assert (whole / name).read_bytes() == (part / name).read_bytes(), name
    assert read_tensors(part / "weights.safetensors").state["epoch"] <= 2
    left = [path.name for path in part.rglob("*") if path.name.startswith(".tmp-") or path.name == "next.safetensors"]
    assert left == []


def killed_and_resumed(data, tmp, points, whole):
    """The outcomes of the blows, after every run has been resumed and compared with the whole one."""
    jobs = []
    for number, (operation, at, act) in enumerate(points):
        run = tmp / f"run{number}"
        jobs.append(Job(start(data, run), str(run), operation, at, act))
    blows = hurt(jobs, tmp)
    runs = [tmp / f"run{number}" for number in range(len(points))]
    begun = [(run / "recipe.yaml").exists() for run in runs]
    again = [Job(resume(data, run) if b else start(data, run), str(run)) for run, b in zip(runs, begun, strict=True)]
    for run, outcome in zip(runs, hurt(again, tmp), strict=True):
        assert outcome.code == 0, outcome.err
        same(whole, run)
    return list(zip(points, blows, begun, strict=True))


@pytest.fixture(scope="module")
def whole(discs, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("whole")
    (outcome,) = hurt([Job(start(discs, tmp / "run"), str(tmp / "run"))], tmp)
    assert outcome.code == 0, outcome.err
    return tmp / "run", outcome


@pytest.mark.slow(longest=True)
def test_kills_cost_nothing(discs, tmp_path, whole):
    run, outcome = whole
    draw = random.Random(0)
    often = {"write": 8, "fsync": 5, "rename": 7, "validation": 4, "step": 4}
    points = [(name, n, "kill") for name, k in often.items() for n in _some(draw, outcome.counts[name], k)]
    points += [("delay", draw.uniform(0, outcome.seconds), "kill") for _ in range(40 - len(points))]
    # inside a save, between its renames (three files of the start, next and last of the first checkpoint; then next, previous
    # and last of each), and inside validation
    points = [("write", 9, "kill"), ("rename", 8, "kill"), ("validation", 3, "kill"), *share(points, 4)]
    outcomes = killed_and_resumed(discs, tmp_path, points, run)
    assert len(outcomes) == len(points)
    for (operation, _, _), blow, _ in outcomes:
        assert blow.code == -signal.SIGKILL or (operation == "delay" and blow.code == 0)


@pytest.mark.slow(longest=True)
def test_stops_exit_with_143_and_the_command(discs, tmp_path, whole):
    run, outcome = whole
    draw = random.Random(1)
    often = {"write": 3, "fsync": 2, "rename": 2, "validation": 3, "step": 4}
    points = [(name, n, "term") for name, k in often.items() for n in _some(draw, outcome.counts[name], k)]
    points += [("delay", draw.uniform(0, outcome.seconds), "term") for _ in range(20 - len(points))]
    points = share(points, 3)
    outcomes = killed_and_resumed(discs, tmp_path, points, run)
    assert len(outcomes) == len(points)
    for (operation, _, _), blow, begun in outcomes:
        if operation == "delay" and (blow.code == 0 or not begun):  # it had ended, or nothing was there to go on with
            assert blow.code in (0, -signal.SIGTERM)
            continue
        assert blow.code == 143, blow.err
        assert "--resume" in blow.err
        assert "Traceback" not in blow.err


def _some(draw, count, wanted):
    return sorted(draw.sample(range(1, count + 1), min(count, wanted)))
