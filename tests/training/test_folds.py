"""Cross-validation in one command: folds are runs, every case is scored once, it goes on, and the folder is an ensemble."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

import ulna
from tests.discs import draw_discs
from tests.plans import make
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.cli.tables import show
from ulna.errors import Interrupted, UsageError
from ulna.evaluation.intervals import mean_interval
from ulna.evaluation.metrics import LESIONS
from ulna.evaluation.objects import BySize, match_objects
from ulna.explaining.explain import explain
from ulna.inference.predict import predict
from ulna.recipe import Labels, Recipe, Slices, from_yaml, to_yaml
from ulna.study.prune import prune
from ulna.system.files import write_text
from ulna.training import folds as room
from ulna.training import loop
from ulna.training.train import train

FLAGS = {"model": "unet", "set": TINY}


@pytest.fixture(scope="module")
def undivided(tmp_path_factory):
    """Seven discs without a split; two are of one patient."""
    root = draw_discs(
        tmp_path_factory.mktemp("undivided"),
        7, seed=0, size=(32, 40), smallest=5, contrast=90, noise=15, foreground=255, train=5, val=2,
    )  # fmt: skip
    (root / "splits.json").unlink()
    (root / "groups.json").write_text(json.dumps({"disc0": "one", "disc5": "one"}))
    return root


@pytest.fixture(scope="module")
def crossed(undivided, tmp_path_factory):
    return train(undivided, out=tmp_path_factory.mktemp("runs") / "cv", folds=3, epochs=2, **FLAGS)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_fold_is_a_run_and_every_case_is_scored_by_the_network_that_did_not_see_it(crossed, undivided):
    runs = [crossed.folder / f"fold_{number}" for number in range(3)]
    kept = {}
    for run in runs:
        split = json.loads((run / "splits.json").read_text())
        assert not {*split["train"]} & {*split["val"]} and not split["test"]
        assert ("disc0" in split["val"]) == ("disc5" in split["val"]), "patients are never divided"
        for row in rows_of(run / "cases.csv"):
            assert row["case"] in split["val"]
            assert kept.setdefault(row["case"], row) is row
        assert from_yaml(Recipe, run / "recipe.yaml").training.folds == 3
    rows = rows_of(crossed.folder / "cases.csv")
    assert {row["case"]: row for row in rows} == kept
    assert sorted(kept) == [f"disc{number}" for number in range(7)]


def test_the_summary_has_means_over_all_cases_with_intervals(crossed):
    dice = [float(row["dice"]) for row in rows_of(crossed.folder / "cases.csv")]
    summary = json.loads((crossed.folder / "summary.json").read_text())
    assert summary == crossed.summary
    found = summary["all"]["mean"]["dice"]
    assert (summary["all"]["cases"], found["n"]) == (7, 7)
    assert found["mean"] == pytest.approx(np.mean(dice))
    assert (found["low"], found["high"]) == pytest.approx(mean_interval(dice))
    tp, fp, fn = (sum(int(row[name]) for row in rows_of(crossed.folder / "cases.csv")) for name in ("tp", "fp", "fn"))
    assert summary["all"]["pooled"]["foreground"]["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert [fold["run"] for fold in summary["folds"]] == ["fold_0", "fold_1", "fold_2"]
    assert sum(fold["cases"] for fold in summary["folds"]) == 7
    assert "did not train on it, which also chose its epoch" in summary["note"]


def test_lesions_of_all_folds_are_counted_together(crossed, undivided, tmp_path):
    out, sizes = shutil.copytree(crossed.folder, tmp_path / "cv"), BySize(2, "px")
    sizes.add(match_objects(np.array([1, 1, 0, 2]), np.array([1, 1, 0, 0])), 1.0)
    for run in sorted(out.glob("fold_*")):
        summary = json.loads((run / "summary.json").read_text())
        summary["val"]["lesions"] = {"disc": sizes.summary()}
        (run / "summary.json").write_text(json.dumps(summary))
    small = train(undivided, out=out, resume=True).summary["all"]["lesions"]["disc"]["50"]["below 1024 px"]
    assert (small["found"], small["false_positives"], small["false_positives_per_case"]) == (3, 3, 1)
    assert "lesions" not in crossed.summary["all"]  # one disc an image


def test_the_table_says_whose_cases_they_are(crossed, capsys):
    show("train", crossed)
    said = " ".join(capsys.readouterr().out.split())
    assert "unet on 7 cases of all folds" in said and "Dice of the folds: " in said


def test_the_page_of_all_folds_has_every_case_and_pictures_of_the_worst(crossed, undivided):
    page = (crossed.folder / "report.html").read_text("utf-8")
    rows = rows_of(crossed.folder / "cases.csv")
    worst = min(rows, key=lambda row: float(row["dice"]))["case"]
    assert re.findall(r'role="rowheader">(?:<a[^>]*>)?(\w+)<', page)[0] == worst
    assert re.findall(r'alt="errors of (\w+)"', page)[0] == worst
    assert len(re.findall(r'role="rowheader"', page)) == 7
    assert page.count('<th scope="row">fold_') == 3 and "Validation Dice of every fold" in page
    assert str(undivided.parent) not in page and str(crossed.folder.parent) not in page
    assert all(f"fold_{number}: best" in page for number in range(3))
    for number in range(3):
        assert (crossed.folder / f"fold_{number}" / "report.html").exists()


def test_a_fold_is_what_the_same_training_alone_gives(crossed, undivided, tmp_path):
    alone = train(undivided, out=tmp_path / "one", fold=1, epochs=2, model="unet", set=[*TINY, "training.folds=3"])
    assert (alone.folder / "cases.csv").read_text() == (crossed.folder / "fold_1" / "cases.csv").read_text()


def test_the_folder_predicts_as_the_ensemble_of_its_folds(crossed, undivided, tmp_path):
    runs = [crossed.folder / f"fold_{number}" for number in range(3)]
    image = undivided / "images" / "disc3.png"
    both = [ulna.load(of)(image).probabilities for of in (crossed.folder, runs)]
    assert np.array_equal(*both)
    each = [ulna.load(run) for run in runs]  # before the temperature of each, which holds for that network alone
    mean = np.mean([one.probabilities(one._volume(image)).numpy() for one in each], axis=0)
    assert np.allclose(both[0], mean, atol=1e-6)
    predict(crossed.folder, undivided, out=tmp_path / "masks")
    again = predict(runs, undivided, out=tmp_path / "masks")
    assert len(again.skipped) == 7, "it is the same ensemble"
    told = json.loads((tmp_path / "masks" / "predict.json").read_text())["runs"]
    assert told == ["cv/fold_0", "cv/fold_1", "cv/fold_2"]
    with pytest.raises(UsageError, match="was trained on another split"):
        predict(crossed.folder, undivided, out=tmp_path / "val", split="val")
    made = explain(crossed.folder, image, out=tmp_path / "why")
    assert made.facts["runs"] == told


def test_verbs_of_one_run_say_that_it_is_several(crossed, undivided, tmp_path):
    with pytest.raises(
        UsageError, match=r"is a cross-validation, whose folds are runs of their own; name one, such as"
    ):
        prune(crossed.folder, data=undivided, out=tmp_path / "small")
    with pytest.raises(UsageError, match="holds the run folders of a cross-validation"):
        predict(crossed.folder, undivided, out=crossed.folder)
    with pytest.raises(UsageError, match="holds a run already"):
        train(undivided, out=crossed.folder, **FLAGS)


class Counted:
    """Trainings that begin, by their folders."""

    def __init__(self, monkeypatch):
        self.begun = []
        run = loop.Loop.run
        monkeypatch.setattr(loop.Loop, "run", lambda one: self.begun.append(one.folder.name) or run(one))


@pytest.mark.slow
def test_finished_folds_are_skipped_and_a_stopped_one_goes_on(crossed, undivided, tmp_path, monkeypatch, caplog):
    counted, validate, out = Counted(monkeypatch), loop.Loop.validate, tmp_path / "cv"

    def stopped(one):
        if one.folder.name == "fold_1" and one.state.epoch == 1:
            one.stop._signal = 15
        return validate(one)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        patch.setattr(loop.Loop, "validate", stopped)
        train(undivided, out=out, folds=3, epochs=2, **FLAGS)
    assert str(caught.value).endswith(f"go on with: ulna train {undivided} --out {out} --resume")
    assert "fold_1: a checkpoint is written" in str(caught.value)
    assert counted.begun == ["fold_0", "fold_1"] and not (out / "summary.json").exists()
    with pytest.raises(UsageError, match=r"fold_1, fold_2 of its 3 folds without weights|fold_2 of its 3 folds"):
        ulna.load(out)
    counted.begun.clear()
    with caplog.at_level("INFO"):
        done = train(undivided, out=out, resume=True)
    assert counted.begun == ["fold_1", "fold_2"]
    said = caplog.text
    assert "fold 1 of 3 (fold_0): is finished" in said
    assert "fold 2 of 3 (fold_1): goes on" in said and "fold 3 of 3 (fold_2): begins" in said
    assert (out / "cases.csv").read_text() == (crossed.folder / "cases.csv").read_text()
    assert done.summary["all"] == crossed.summary["all"]
    counted.begun.clear()
    train(undivided, out=out, resume=True)
    assert counted.begun == []


@pytest.mark.slow
def test_more_epochs_extend_all_folds_also_after_a_stop(crossed, undivided, tmp_path, monkeypatch):
    out = tmp_path / "cv"
    shutil.copytree(crossed.folder, out)
    counted, one_more = Counted(monkeypatch), loop.Loop.run

    def fails_in_the_second(one):
        if one.folder.name == "fold_1":
            raise UsageError("stopped here")
        return one_more(one)

    with monkeypatch.context() as patch, pytest.raises(UsageError, match="stopped here"):
        patch.setattr(loop.Loop, "run", fails_in_the_second)
        train(undivided, out=out, resume=True, epochs=3)
    counted.begun.clear()
    done = train(undivided, out=out, resume=True)
    assert counted.begun == ["fold_1", "fold_2"], "the first has its three epochs"
    assert [fold["epochs"] for fold in done.summary["folds"]] == [3, 3, 3]


def test_what_cannot_be_cross_validated_is_refused_before_data_are_read(undivided, tmp_path, monkeypatch):
    monkeypatch.setattr("ulna.planning.plan.check_dataset", None)
    data, out = tmp_path / "data", tmp_path / "cv"
    shutil.copytree(undivided, data)

    def refused(said, **flags):
        with pytest.raises(UsageError, match=said):
            train(data, out=out, **{**FLAGS, **flags})
        assert not out.exists()

    refused("--fold 1 and --folds 3: --fold trains one fold, --folds all of them; give one of them", fold=1, folds=3)
    refused("--folds 1: two or more, or leave it out", folds=1)
    refused("--split 80/20 and --folds: give one of them", folds=3, split="80/20")
    refused("7 folds need 7 groups of cases, there are 6", folds=7)
    refused("--plan and --folds 3: a plan is for one split", folds=3, plan="plan.yaml")
    ids = [f"disc{number}" for number in range(7)]
    (data / "splits.json").write_text(json.dumps({"train": ids[1:4], "val": ids[4:5]}))
    refused("--folds 3: the data set brings one split, not folds; leave --folds out", folds=3)
    (data / "groups.json").unlink()
    listed = [{"train": ids[2:], "val": ids[:2]}, {"train": ids[:5], "val": ids[5:]}]
    (data / "splits.json").write_text(json.dumps(listed))
    refused("--folds 3: the data set brings 2 folds; write --folds 2", folds=3)
    (data / "splits.json").write_text(
        json.dumps([{"train": ids[3:], "val": [v], "test": ids[1:3]} for v in ids[:1] * 2])
    )
    refused(r"--folds 2: 2 cases kept aside by several folds \(disc1, disc2\)", folds=2)


def test_where_no_fold_could_begin_nothing_is_left(undivided, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(undivided, data)
    (data / "labels" / "disc2.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"disc2\.png"):
        train(data, out=tmp_path / "cv", folds=3, **FLAGS)
    assert not (tmp_path / "cv").exists()


@pytest.mark.slow
def test_given_folds_with_tests_of_their_own_are_scored_on_these(undivided, tmp_path):
    data, ids = tmp_path / "data", [f"disc{number}" for number in range(7)]
    shutil.copytree(undivided, data)
    (data / "groups.json").unlink()
    listed = [
        {"train": ids[4:], "val": ids[3:4], "test": ids[:3]},
        {"train": ids[:3], "val": ids[3:4], "test": ids[4:]},
    ]
    (data / "splits_final.json").write_text(json.dumps(listed))
    run = train(data, out=tmp_path / "cv", folds=2, epochs=1, **FLAGS)
    assert run.summary["all"]["cases"] == 6 and "chose" not in run.summary["note"]
    assert [fold["evaluated_on"] for fold in run.summary["folds"]] == ["test", "test"]


def test_a_damaged_file_of_folds_is_named(crossed, undivided, tmp_path):
    out = tmp_path / "cv"
    shutil.copytree(crossed.folder, out)
    (out / "folds.yaml").write_text("model: unet\n")
    with pytest.raises(UsageError, match=r"folds\.yaml: does not say how many folds there are"):
        ulna.load(out)
    shutil.copy(crossed.folder / "folds.yaml", out)
    (out / "fold_1" / "cases.csv").write_text("case,class,dice\ndisc0,foreground,much\n")
    with pytest.raises(UsageError, match=r"fold_1/cases\.csv: cannot be read"):
        train(undivided, out=out, resume=True)


def test_flags_of_a_cross_validation_do_not_change_when_it_goes_on(crossed, undivided):
    own = from_yaml(Recipe, crossed.folder / "folds.yaml").training.folds
    for flag, value in {"folds": own + 1, "split": "80/20", "fold": 1}.items():
        with pytest.raises(UsageError, match=rf"training\.{flag} is .* there, .*{value}.* now"):
            train(undivided, out=crossed.folder, resume=True, **{flag: value})
    train(undivided, out=crossed.folder, resume=True, folds=own)


@pytest.mark.slow
def test_shares_of_a_command_divide_the_cases(undivided, tmp_path, capsys):
    run = train(undivided, out=tmp_path / "a", split="60/20/20", epochs=1, **FLAGS)
    split = json.loads((run.folder / "splits.json").read_text())
    assert [len(split[name]) for name in ("train", "val", "test")] in ([5, 1, 1], [4, 1, 2], [4, 2, 1])
    stored = from_yaml(Recipe, run.folder / "recipe.yaml").training
    assert stored.split == "60/20/20"
    again = train(undivided, out=tmp_path / "b", recipe=run.folder / "recipe.yaml")
    assert (again.folder / "splits.json").read_text() == (run.folder / "splits.json").read_text()
    assert cli.run(["train", str(undivided), "--out", str(tmp_path / "c"), "--split", "60/20", "--quiet"]) == 2
    assert "error: --split 60/20 adds up to 80, not to 100 or 1; write them as" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_fold_is_finished_by_what_stands_in_its_folder(crossed):
    recipe = from_yaml(Recipe, crossed.folder / "folds.yaml")
    assert all(room.finished(crossed.folder / f"fold_{number}", recipe) for number in range(3))
    assert not room.finished(crossed.folder / "fold_3", recipe)
    longer = recipe.replaced(training=recipe.training.replaced(epochs=3))
    assert not room.finished(crossed.folder / "fold_0", longer)


def fold_of(folder, number, of_classes):
    """A finished fold of one case with structures a and b, in which the rule chose these families."""
    run = folder / f"fold_{number}"
    names = ("dice", "iou", "ppv", "sensitivity", "hd95", "assd", "nsd")
    further = LESIONS if any("lesions" in families for families in of_classes.values()) else ()
    lines = [",".join(["case", "class", *names, "tp", "fp", "fn", *further])]
    for name, families in of_classes.items():
        values = ["0.5" if "lesions" in families else "nan"] * len(further)
        lines.append(",".join([f"c{number}", name, *["0.5"] * len(names), "1", "1", "1", *values]))
    write_text(run / "cases.csv", "\n".join(lines) + "\n")
    part = {"unit": "mm", "cases": 1, "mean": {"dice": {"mean": 0.5}}}
    because = {name: {"lesions": f"seen {number}"} if "lesions" in of else {} for name, of in of_classes.items()}
    part["measures"] = {"asked": ["auto"], "of_classes": of_classes, "because": because}
    own = dict.fromkeys(("epochs", "best_epoch", "val_dice", "wall_seconds", "training_seconds", "peak_memory_mb"), 1)
    write_text(run / "summary.json", json.dumps({**own, "evaluated_on": "val", "split_hash": "0", "val": part}))
    plan = make(
        labels=Labels(names=("background", "a", "b")),
        spacing=(1.0,) * 3,
        slices=Slices(axis=1, full_count=1, empty_count=0),
    )
    write_text(run / "plan.yaml", to_yaml(plan))
    return run


def test_folds_that_predict_in_other_ways_are_not_mixed(tmp_path):
    runs = [tmp_path / f"fold_{number}" for number in range(4)]
    for number, run in enumerate(runs[:3]):  # the fourth has not begun
        run.mkdir()
        (run / "plan.yaml").write_text(to_yaml(make(whole_image_limit=0 if number == 2 else 1024)))
    room.check_alike(tmp_path, runs[:2])
    with pytest.raises(
        UsageError, match=r"fold_0 was planned by an earlier version .* in one piece, fold_2 in windows"
    ):
        room.check_alike(tmp_path, runs)


def test_measures_that_not_all_folds_chose_are_left_out_and_said(tmp_path, monkeypatch, caplog):
    """And lengths are those of the volumes, whose slices a 2D network reads."""
    for name in ("write_report", "of_folds", "read_shown"):
        monkeypatch.setattr(room, name, lambda *_, **__: [])
    usual, lesions = ["overlap", "surface"], ["overlap", "surface", "lesions"]
    chosen = {"both": [(usual, lesions), (lesions, lesions)], "neither": [(usual, lesions), (lesions, usual)]}
    found = {}
    for which, each in chosen.items():
        runs = [fold_of(tmp_path / which, n, dict(zip("ab", one, strict=True))) for n, one in enumerate(each)]
        with caplog.at_level("INFO", "ulna"):
            found[which] = room._summarise(tmp_path / which, runs, Recipe(), tmp_path)
    both, neither = found["both"]["all"], found["neither"]["all"]
    assert (both["tolerance"], both["tolerance_unit"]) == (1, "mm")
    assert both["measures"]["of_classes"] == {"a": usual, "b": lesions}
    assert both["measures"]["because"]["b"] == {"lesions": "seen 0; seen 1"}
    assert [both["classes"][name]["pq"]["n"] for name in "ab"] == [0, 2]
    assert "not all folds have them: lesions of a; evaluation.metrics" in found["both"]["note"]
    assert "lesions of a, lesions of b" in found["neither"]["note"] and "lesions of a, lesions of b" in caplog.text
    assert "pq" not in neither["mean"] and "lesions" not in neither["measures"]["of_classes"]["a"]


@pytest.mark.slow
def test_folds_as_processes_are_those_that_one_process_trains(crossed, undivided, tmp_path):
    """The same weights, summary and table; and the command that goes on says where."""
    before, number = torch.get_num_threads(), json.loads((crossed.folder / "summary.json").read_text())["threads"]
    side = train(undivided, out=tmp_path / "cv", folds=3, epochs=2, jobs=2, threads=number, **FLAGS)
    for name in ("fold_0", "fold_1", "fold_2"):
        for file in ("weights.safetensors", "metrics.csv", "cases.csv", "recipe.yaml", "plan.yaml"):
            assert (side.folder / name / file).read_bytes() == (crossed.folder / name / file).read_bytes(), (name, file)
    assert (side.folder / "cases.csv").read_bytes() == (crossed.folder / "cases.csv").read_bytes()
    assert side.summary["all"] == crossed.summary["all"] and torch.get_num_threads() == before


@pytest.mark.slow
def test_folds_as_processes_go_on_and_say_what_failed(undivided, tmp_path):
    flags = {"folds": 2, "jobs": 2, "threads": 1, **FLAGS}
    train(undivided, out=tmp_path / "cv", epochs=1, **flags)
    (tmp_path / "cv" / "fold_1" / "summary.json").unlink()
    write_text(tmp_path / "cv" / "fold_1" / "plan.yaml", "nothing")
    with pytest.raises(UsageError, match=r"1 fold failed, the others are trained; go on with: ulna train .* --jobs 2"):
        train(undivided, out=tmp_path / "cv", resume=True, jobs=2)


def test_a_dry_run_of_folds_prints_every_command_and_writes_nothing(undivided, tmp_path, capsys):
    words = [
        "train",
        str(undivided),
        "--model",
        "unet",
        "--out",
        str(tmp_path / "cv"),
        "--threads",
        "2",
        "--max-hours",
        "2",
    ]
    words += [word for setting in TINY for word in ("--set", setting)]
    assert cli.run([*words, "--folds", "3", "--on", "slurm", "--slurm", "qos=long", "--dry-run", "--quiet"]) == 0
    script = capsys.readouterr().out
    for line in ("--array=0-2", "--qos=long", "--cpus-per-task=2", "--time=03:10:00"):
        assert f"\n#SBATCH {line}\n" in script
    assert script.count("ulna.training.fold_worker") == 3
    assert cli.run([*words, "--folds", "3", "--jobs", "2", "--dry-run", "--quiet"]) == 0
    assert capsys.readouterr().out.count("ulna.training.fold_worker") == 3 and not (tmp_path / "cv").exists()
    for more, said in (
        (("--on", "slurm"), "hand out the folds of --folds"),
        (("--dry-run",), "hand out the folds of --folds"),
        (("--folds", "3", "--on", "pbs"), "--on pbs: local, ray, ray:ADDRESS or slurm"),
        (("--folds", "3", "--slurm", "mem=1G"), "--slurm mem=1G: belongs to --on slurm"),
    ):
        assert cli.run([*words, *more, "--quiet"]) == 2 and said in " ".join(capsys.readouterr().err.split())
