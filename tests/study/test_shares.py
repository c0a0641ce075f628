"""Studies of data without a split: by shares, and as many trainings side by side as the machine carries."""

import json

import pytest

from tests.discs import draw_discs
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.executors.local import Local
from ulna.study import compare as comparing
from ulna.study.compare import compare


@pytest.fixture
def undivided(tmp_path):
    (tmp_path / "data").mkdir()
    root = draw_discs(
        tmp_path / "data",
        9, seed=2, size=(32, 32), smallest=4, contrast=60, noise=25, foreground=1, train=4, val=2,
    )  # fmt: skip
    (root / "splits.json").unlink()
    return root


@pytest.mark.slow
def test_all_trainings_of_a_study_have_the_shares_that_were_asked_for(undivided, tmp_path, caplog):
    flags = {"models": "unet,unetpp", "split": "50/25/25", "epochs": 1, "set": TINY, "jobs": "auto"}
    with caplog.at_level("INFO"):
        study = compare(undivided, out=tmp_path / "study", **flags)
    splits = [json.loads(path.read_text()) for path in study.folder.glob("runs/*/*/splits.json")]
    assert len(splits) == 2 and splits[0] == splits[1]
    assert sorted(len(ids) for ids in splits[0].values()) == [2, 2, 5]
    assert "--split 50/25/25" in study.outcome.command and "--jobs auto" in study.outcome.command
    compare(undivided, out=tmp_path / "study", **flags)
    with pytest.raises(UsageError, match="a study with other settings"):
        compare(undivided, out=tmp_path / "study", **{**flags, "split": "60/20/20"})


def test_wrong_shares_and_jobs_are_one_sentence_each(undivided, discs, tmp_path, capsys):
    def refused(said, data, *words):
        code = cli.run(["compare", str(data), "--models", "unet", "--out", str(tmp_path / "study"), "--quiet", *words])
        assert code == 2 and said in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "study").exists()

    refused("--split 80/10/20 adds up to 110, not to 100 or 1", undivided, "--split", "80/10/20")
    refused("--split 80/20 and --folds: give one of them", undivided, "--split", "80/20", "--folds", "3")
    refused("--split 80/20: the data set brings its own split; leave --split out", discs, "--split", "80/20")
    refused("--jobs some: a number of jobs at once, at least one, or auto", undivided, "--jobs", "some")


def test_a_recipe_s_shares_give_way_to_the_split_of_the_data_with_a_note(discs, tmp_path, caplog, monkeypatch):
    asked = []
    monkeypatch.setattr(
        comparing,
        "run_jobs",
        lambda jobs, data, *, executor, needs, **_: asked.append((executor, needs)) or {"unet": "not trained"},
    )
    with caplog.at_level("INFO"), pytest.raises(UsageError, match="no network has all its trainings"):
        compare(discs, models="unet", out=tmp_path / "s", epochs=1, jobs=3, set=[*TINY, "training.split=80/20"])
    assert "note: training.split=80/20 is not used: the data set brings its own split" in caplog.text
    ((executor, needs),) = asked
    assert isinstance(executor, Local) and needs["unet"].machine > 0
