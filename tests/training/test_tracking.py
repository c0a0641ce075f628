"""`--track mlflow`: a run folder told to a tracker as it grows. MLflow itself is asked where it is installed."""

import json
import logging
import os
import sys
from types import SimpleNamespace

import pytest

import ulna
from tests.tracker import Server, standing_in
from tests.training.tiny import TINY, rows_of
from ulna.cli import main as cli
from ulna.demonstration import make_nuclei
from ulna.errors import Interrupted, UsageError
from ulna.study.tracking import TrackedStudy
from ulna.system.trackers import PARENT, open_tracker
from ulna.training.tracking import TRACKING_FILE, Tracked, plain, tell_folds

RECIPE = """
model: "module:/home/me/net.py:Net"
optimizer: {kind: adam, lr: 0.001}
training: {init: /home/me/secret/run, test: [Doe_Jane], epochs: 3, patience: null}
study: {models: [a, b]}
"""
MEANS = {"dice": {"mean": 0.8, "low": 0.7, "high": 0.9}, "hd95": {"mean": None}, "both_empty": 1}
SUMMARY = {"evaluated_on": "test", "best_epoch": 2, "test": {"mean": MEANS, "classes": {"a/b (1)": MEANS}}}


@pytest.fixture
def server(monkeypatch):
    """A stand-in for MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return standing_in(monkeypatch, Server())


def run_folder(folder, epochs, *, done=True):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "plan.yaml").write_text("patch: [32, 32]\nbatch: 2\nreasons: {batch: long}\n")
    rows = [f"{n},0.1,{1 / n},{'' if n == 2 else 0.5}" for n in range(1, epochs + 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,lr,train_loss,val_dice", *rows]) + "\n")
    if done:
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def tracked(folder):
    return Tracked.training(open_tracker("mlflow"), folder, folder.parent / "nuclei.npz")


def test_settings_epochs_and_figures_are_told_each_once(tmp_path, server):
    folder = run_folder(tmp_path / "run", 1, done=False)
    one = tracked(folder)
    with one.active():
        for epochs in (1, 2, 2, 3):
            run_folder(folder, epochs)
            one.epochs()
        one.figures()
    (told,) = server.runs.values()
    assert (told.experiment, told.name, told.status) == ("nuclei", "run", "FINISHED")
    assert told.params["optimizer.lr"] == "0.001" and told.params["plan.patch"] == "[32, 32]"
    assert (told.params["training.init"], told.params["model"]) == ("run", "module:net.py:Net")  # not where they lie
    assert told.at("train_loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)] and told.at("val_dice") == [(1, 0.5), (3, 0.5)]
    assert told.at("test/dice") == told.at("test/a_b _1_/dice") == [(0, 0.8)]
    assert not told.at("test/hd95") and told.at("best_epoch") == [(0, 2.0)]
    everything = repr(vars(told))
    assert not any(word in everything for word in ("Doe", "/home", "study", "patience", "reasons"))


def test_a_run_that_goes_on_goes_on_there_and_elsewhere_begins_anew(tmp_path, server, monkeypatch):
    folder = run_folder(tmp_path / "run", 2)
    with pytest.raises(Interrupted), (one := tracked(folder)).active():
        one.epochs()
        raise Interrupted(15, "again")
    (told,) = server.runs.values()
    assert told.status == "KILLED"
    run_folder(folder, 3)
    with (again := tracked(folder)).active():
        assert told.status == "RUNNING"
        again.epochs()
    assert len(server.runs) == 1 and [step for step, _ in told.at("lr")] == [1, 2, 3]
    other = standing_in(monkeypatch, Server())
    tracked(folder).epochs()
    assert [step for step, _ in next(iter(other.runs.values())).at("lr")] == [1, 2, 3]
    with pytest.raises(ZeroDivisionError), tracked(folder).active():
        raise ZeroDivisionError
    assert next(iter(other.runs.values())).status == "FAILED"


def test_a_server_that_fails_ends_nothing_and_gets_the_rest_at_the_end(tmp_path, server, caplog):
    folder = run_folder(tmp_path / "run", 1)
    with caplog.at_level(logging.WARNING, "ulna"), (one := tracked(folder)).active():
        one.epochs()
        server.down = True
        for epochs in (2, 3, 4):
            run_folder(folder, epochs)
            one.epochs()
        assert len(caplog.messages) == 1 and "tracking: run was not told" in caplog.messages[0]
        assert "secret" not in caplog.text  # what the server said may name places
        server.down = False
        one.figures()
    (told,) = server.runs.values()
    assert [step for step, _ in told.at("lr")] == [1, 2, 3, 4] and told.status == "FINISHED"


def test_a_damaged_note_of_an_earlier_tracking_is_no_reason_to_stop(tmp_path, server):
    folder = run_folder(tmp_path / "run", 1)
    (folder / TRACKING_FILE).write_text("{")
    with tracked(folder).active():
        pass
    assert not server.runs


def test_without_a_tracker_nothing_is_written(tmp_path):
    folder = run_folder(tmp_path / "run", 2)
    with (one := Tracked.training(None, folder, tmp_path)).active():
        one.epochs()
        one.figures()
    assert not (folder / TRACKING_FILE).exists()


def test_folds_lie_below_their_cross_validation(tmp_path, server):
    folder = tmp_path / "cv"
    folds = [run_folder(folder / f"fold_{n}", 1) for n in range(2)]
    (folder / "folds.yaml").write_text(RECIPE)
    for fold in folds:
        tracked(fold).figures()
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    tell_folds(open_tracker("mlflow"), folder, tmp_path / "nuclei")
    above, *below = (next(told for told in server.runs.values() if told.name == name) for name in ("cv", *FOLDS))
    assert len(server.runs) == 3 and above.at("test/dice") == [(0, 0.8)] and not above.params
    assert {told.tags[PARENT] for told in below} == {above.id} and PARENT not in above.tags


FOLDS = ("cv/fold_0", "cv/fold_1")


def test_a_study_tells_each_training_once_and_its_means(tmp_path, server):
    jobs = [
        SimpleNamespace(
            name=f"unet seed {n}", run=run_folder(tmp_path / "study" / f"s{n}", 2), done=n < 2, external=False
        )
        for n in range(3)
    ]
    outcome = SimpleNamespace(described={"unet": {"dice": SimpleNamespace(mean=0.7)}})
    for _ in range(2):  # the study is called again
        study = TrackedStudy(open_tracker("mlflow"), tmp_path / "study")
        study.training(jobs[0])
        study.study(jobs, outcome)
    names = {told.name: told for told in server.runs.values()}
    assert len(server.runs) == 3 and names.keys() == {"study", "unet seed 0", "unet seed 1"}
    assert names["unet seed 1"].tags[PARENT] == names["study"].id
    assert len(names["unet seed 0"].at("lr")) == 2 and names["unet seed 0"].status == "FINISHED"
    assert names["study"].at("unet/dice")[0] == (0, 0.7) and {told.experiment for told in names.values()} == {"study"}


@pytest.mark.parametrize("verb", [["train"], ["compare", "--models", "unet"]])
def test_what_cannot_be_tracked_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, verb):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    data = make_nuclei(tmp_path / "data", count=3, sizes=((32, 40),))
    words = [verb[0], str(data), *verb[1:], "--out", str(tmp_path / "o")]
    assert cli.run([*words, "--track", "mlflow"]) == 2
    assert "--track mlflow needs mlflow, which is not installed; pip install 'ulna[track]'" in capsys.readouterr().err
    assert cli.run([*words, "--track", "mlflov"]) == 2
    assert "--track: no tracker named 'mlflov'; did you mean 'mlflow'?" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_it_is_local_unless_a_server_is_named_which_is_said(server, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "ulna"):
        open_tracker("mlflow")
        assert "on this machine (sqlite:///mlflow.db)" in caplog.text
        server.place = "https://me:password@tracking.example.org/x"
        open_tracker("mlflow")
    assert caplog.records[-1].levelno == logging.WARNING and "sent to https://tracking.example.org/x" in caplog.text
    assert "password" not in caplog.text
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    server.down = True
    with pytest.raises(UsageError, match="--track mlflow: server of secret is down; let MLFLOW_TRACKING_URI name"):
        open_tracker("mlflow")


@pytest.mark.parametrize("name", ["liver", "a/b", "..", "/", "T1: 50 %", "größe", ""])
def test_names_are_such_as_mlflow_takes(name):
    told = plain(name)
    assert told and not {"/", ":", "%"} & {*told} and told.strip(".")


def test_a_training_is_told_and_its_files_are_the_same(tmp_path, server):
    data = make_nuclei(tmp_path / "data", count=6, sizes=((32, 40),))
    changes = (*TINY, "planning.patch=[32, 32]")
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=2, set=changes, track="mlflow")
    (told,) = server.runs.values()
    assert [value for _, value in told.at("train_loss")] == [float(row["train_loss"]) for row in rows_of(run.folder)]
    part = run.summary["evaluated_on"]
    assert told.at(f"{part}/dice") == [(0, run.summary[part]["mean"]["dice"]["mean"])]
    assert "nuclei_0" not in repr(vars(told)) and str(tmp_path) not in repr(vars(told))
    assert "mlflow" not in (run.folder / "recipe.yaml").read_text() + (run.folder / "log.txt").read_text()


@pytest.mark.filterwarnings("ignore")  # what MLflow and its imports warn of is not ours
def test_mlflow_itself_takes_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'ulna[track]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = run_folder(tmp_path / "run", 2)
    with (one := tracked(folder)).active():
        one.figures()
    with (one := tracked(folder)).active():  # goes on
        run_folder(folder, 3)
        one.figures()
    client = mlflow.MlflowClient()
    (told,) = client.search_runs([client.get_experiment_by_name("nuclei").experiment_id])
    assert told.info.status == "FINISHED" and told.data.params["optimizer.lr"] == "0.001"
    assert [one.step for one in client.get_metric_history(told.info.run_id, "train_loss")] == [1, 2, 3]
    assert told.data.metrics["test/a_b _1_/dice"] == 0.8
