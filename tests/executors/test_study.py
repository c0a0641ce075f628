"""A study is the same whichever executor trained it: its scores, and the weights to the byte."""

import random
import subprocess
import sys
import time

import pytest

from tests.discs import draw_discs
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.study.compare import compare

pytestmark = pytest.mark.timeout(900)  # several studies, on a machine that may have other work

FLAGS = {"models": "unet,unetpp", "epochs": 1, "threads": 1, "set": TINY}


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    return draw_discs(
        tmp_path_factory.mktemp("discs"),
        9, seed=2, size=(32, 32), smallest=4, contrast=60, noise=25, foreground=1, train=4, val=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def here(discs, tmp_path_factory):
    return compare(discs, out=tmp_path_factory.mktemp("studies") / "here", jobs=2, **FLAGS).folder


def written(study):
    """What holds the scores, and the weights."""
    files = [study / "results.csv", *sorted(study.glob("runs/*/*/weights.safetensors"))]
    return {str(file.relative_to(study)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Ray warns of is not ours
@pytest.mark.parametrize("on", ["slurm", "ray"])
def test_a_study_is_the_same_wherever_it_was_trained(here, discs, slurm, tmp_path, monkeypatch, on):
    if on == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed: too large for every run of the tests")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    there = compare(discs, out=tmp_path / on, on=on, **FLAGS)
    assert len(written(here)) == 3 and written(there.folder) == written(here)
    assert f"--on {on}" in there.outcome.command


@pytest.mark.slow
def test_a_study_with_slurm_is_killed_now_and_then_and_ends_the_same(here, discs, slurm, tmp_path):
    """Its command is killed, and one of its jobs."""
    words = [sys.executable, "-m", "ulna", "compare", str(discs), "--models", FLAGS["models"], "--epochs", "1"]
    words += ["--threads", "1", "--out", str(tmp_path / "study"), "--on", "slurm"]
    words += [word for setting in TINY for word in ("--set", setting)]
    chance = random.Random(1)
    for _ in range(2):
        command = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not list((tmp_path / "study").glob("runs/*/*.txt")) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(chance.uniform(0.0, 1.5))
        command.kill()
        command.wait(30)
    compare(discs, out=tmp_path / "study", on="slurm", **FLAGS)
    assert written(tmp_path / "study") == written(here)


def test_a_dry_run_of_a_study_prints_its_jobs_and_writes_nothing(discs, tmp_path, capsys):
    words = [
        "compare",
        str(discs),
        "--models",
        "unet,unetpp",
        "--seeds",
        "2",
        "--max-hours",
        "1",
        "--threads",
        "3",
        "--quiet",
    ]
    words += [
        "--quiet",
        "--dry-run",
        "--out",
        str(tmp_path / "study"),
        *(word for setting in TINY for word in ("--set", setting)),
    ]
    assert cli.run([*words, "--on", "slurm", "--jobs", "2", "--slurm", "account=lab"]) == 0
    script = capsys.readouterr().out
    for line in ("--array=0-3%2", "--account=lab", "--cpus-per-task=3", "--time=01:40:00", "--requeue"):
        assert f"\n#SBATCH {line}\n" in script
    for name in ("unet", "unetpp"):
        assert f"study/runs/{name}/seed1.yaml" in script
    assert cli.run(words) == 0
    assert "# 4 trainings on this machine, 1 at once\n# unet seed 0: 3 threads, " in capsys.readouterr().out
    assert cli.run([*words, "--on", "ray:10.0.0.1:6379"]) == 0
    assert "as tasks of Ray (10.0.0.1:6379)" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()
