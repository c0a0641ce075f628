"""A cross-validation that is handed out: whatever becomes of the command, the one that it prints goes on."""

import fcntl
import json
import os
import shlex
import signal
import sys

import pytest

from tests.discs import draw_discs
from tests.tracker import Server, standing_in
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.data.layout.pseudonyms import opened
from ulna.errors import DryRun, Interrupted, UsageError
from ulna.executors.slurm import Slurm
from ulna.training import fold_jobs, fold_worker
from ulna.training.tracking import TRACKING_FILE
from ulna.training.train import train

FLAGS = {"model": "unet", "set": TINY, "folds": 2, "epochs": 1, "threads": 1}


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    root = draw_discs(
        tmp_path_factory.mktemp("undivided"),
        4, seed=0, size=(32, 40), smallest=5, contrast=90, noise=15, foreground=255, train=3, val=1,
    )  # fmt: skip
    (root / "splits.json").unlink()
    return root


def go_on(error, *more):
    """Type the command that a message names."""
    words = shlex.split(str(error).split("go on with: ")[1].splitlines()[0])
    assert words[0] == "ulna" and cli.run([*words[1:], *more, "--quiet"]) == 0


@pytest.fixture
def failing(monkeypatch):
    """Every fold ends before it has written anything."""
    words = [sys.executable, "-ISc", "import sys; sys.exit('error: no room')"]
    with monkeypatch.context() as patch:
        patch.setattr(fold_jobs, "python_module", lambda *_: words)
        yield patch


def test_where_all_folds_fail_the_command_that_is_printed_goes_on(undivided, tmp_path, failing, capsys):
    out = tmp_path / "cv"
    with pytest.raises(UsageError, match=r"2 folds failed(.|\n)*fold_1: no room") as failed:
        train(undivided, out=out, jobs=2, **FLAGS)
    assert (out / "folds.yaml").exists()
    failing.undo()
    go_on(failed.value, "--dry-run")
    assert capsys.readouterr().out.count("ulna.training.fold_worker") == 2


def test_a_cross_validation_is_told_to_a_tracker_before_its_folds(undivided, tmp_path, failing, monkeypatch):
    """Each fold, a process, goes on below this run: none makes one of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    server, out = standing_in(monkeypatch, Server()), tmp_path / "cv"
    with pytest.raises(UsageError, match="2 folds failed"):
        train(undivided, out=out, jobs=2, track="mlflow", **FLAGS)
    (told,) = server.runs.values()
    assert (told.name, told.experiment) == ("cv", undivided.name)
    assert json.loads((out / TRACKING_FILE).read_text())["mlflow"] == told.id


def test_where_no_fold_was_handed_out_nothing_is_left(undivided, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no sbatch"):
        train(undivided, out=tmp_path / "cv", on="slurm", **FLAGS)
    assert not (tmp_path / "cv" / "folds.yaml").exists()


@pytest.fixture
def stopping(slurm, monkeypatch):
    """SLURM has every job wait, and Ctrl-C comes as soon as they do; gives what lets them run."""
    slots, look = [(slurm / f"slot{number}").open("w") for number in range(2)], Slurm.look
    for slot in slots:
        fcntl.flock(slot, fcntl.LOCK_EX)
    patch = pytest.MonkeyPatch()
    sent = []

    def looked(one, job):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return look(one, job)

    patch.setattr(Slurm, "look", looked)

    def release():
        patch.undo()
        for slot in slots:
            slot.close()

    yield release
    release()


def stopped(data, out, **flags):
    with pytest.raises(Interrupted, match=r"the jobs of SLURM go on; `scancel .*--resume .*--on slurm") as error:
        train(data, out=out, on="slurm", **FLAGS, **flags)
    return error.value


def test_a_command_that_is_stopped_while_its_folds_wait_leaves_what_they_read(
    undivided, tmp_path, stopping, monkeypatch
):
    stopped(undivided, tmp_path / "cv")
    assert (tmp_path / "cv" / "folds.yaml").exists()
    monkeypatch.setattr("ulna.executors.slurm.waiting_or_running", lambda _: None)
    with pytest.raises(UsageError, match="squeue does not answer"):  # another call that hands out nothing
        train(undivided, out=tmp_path / "cv", resume=True, on="slurm")
    assert (tmp_path / "cv" / "folds.yaml").exists()


@pytest.mark.slow
def test_the_command_that_a_stop_prints_waits_for_the_folds(undivided, tmp_path, stopping):
    error = stopped(undivided, tmp_path / "cv")
    stopping()
    go_on(error)
    assert len(json.loads((tmp_path / "cv" / "summary.json").read_text())["folds"]) == 2


def test_a_fold_without_its_recipe_says_so_as_a_job_does(tmp_path, monkeypatch):
    """In `work`, which notes the reason where the command looks for it."""
    acts = []
    monkeypatch.setattr(fold_worker, "work", lambda data, run, act, done, **_: acts.extend((act, done)) or 2)
    assert fold_worker.main(tmp_path, tmp_path, 0, json.dumps({"allow_code": False})) == 2
    for act in acts:
        with pytest.raises(UsageError, match=r"folds\.yaml"):
            act()


def dry(data, out, **flags):
    with pytest.raises(DryRun) as would:
        train(data, out=out, dry_run=True, **{**FLAGS, **flags})
    return str(would.value)


def test_a_dry_run_names_the_file_of_pseudonyms(undivided, tmp_path):
    key = tmp_path / "names.json"
    with pytest.raises(UsageError, match=r"--dry-run: .*names\.json is not there, and would be made"):
        dry(undivided, tmp_path / "cv", pseudonymise=key)
    assert not key.exists()
    opened(key).remembered("disc0")
    assert dry(undivided, tmp_path / "cv", pseudonymise=key).count(f'"pseudonymise": "{key}"') == 2


def test_folds_of_a_budget_ask_slurm_for_its_time(undivided, tmp_path):
    flags = {"epochs": None, "budget": "quick", "on": "slurm"}
    assert "#SBATCH --time=" in dry(undivided, tmp_path / "cv", **flags)
    assert "#SBATCH --time=" not in dry(undivided, tmp_path / "cv", on="slurm")
