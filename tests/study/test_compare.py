"""A whole study on tiny data: its files, its fairness, that it goes on, that a failure does not stop it, that it refuses."""

import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

import ulna
from tests.discs import draw_discs
from tests.share import ALL
from tests.tracker import Server, standing_in
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.errors import Interrupted, PartialFailure, UsageError
from ulna.study import compare as comparing
from ulna.study.compare import compare
from ulna.study.publishing import _escaped
from ulna.study.same_study import check_same, stored_study
from ulna.study.scores import MEASURES
from ulna.trust.calibration import read_calibration

MODELS = "unet,unetpp"
TABLES = ("results.csv", "table.md", "table.tex", "report.html", "outcome.json")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Fourteen discs, eight of them to test."""
    root = draw_discs(
        tmp_path_factory.mktemp("many discs"),
        14, seed=1, size=(32, 32), smallest=4, contrast=60, noise=25, foreground=1, train=4, val=2,
    )  # fmt: skip
    # the last two test images are of one patient, who is called like another case
    (root / "groups.json").write_text(json.dumps({"disc12": "disc6", "disc13": "disc6"}))
    return root


@pytest.fixture(scope="module")
def study(many, tmp_path_factory):
    out = tmp_path_factory.mktemp("studies") / "a"
    return compare(many, models=MODELS, out=out, seeds=2, epochs=2, set=TINY, jobs=2)


def test_the_study_keeps_its_threads_and_leaves_no_trace_of_what_was_under_way(study, many):
    assert json.loads((study.folder / "study.json").read_text())["threads"] == 1
    assert not list(study.folder.rglob("*.now*"))
    with pytest.raises(UsageError, match="was begun with --threads 1, not 2; leave it out"):
        compare(many, models=MODELS, out=study.folder, seeds=2, epochs=2, set=TINY, threads=2)


def test_a_study_is_short_to_read(study):
    means = ", ".join(f"{name} {study.outcome.described[name]['dice'].mean:.3f}" for name in ("unet", "unetpp"))
    assert repr(study) == f"Study {study.folder}: Dice {means} over 8 test cases, 2 seeds"


def test_every_file_is_there(study):
    names = {path.relative_to(study.folder).as_posix() for path in study.folder.rglob("*") if path.is_file()}
    drawn = {f"figures/{name}.png" for name in ("cases", "tradeoff", "curves", "worst")}
    assert names >= {*TABLES, *drawn, "study.json", "costs.json", "runs/unet/seed0/summary.json"}
    assert not any(".tmp" in name for name in names)


def test_results_hold_a_row_per_case_seed_and_model(study):
    rows = list(csv.DictReader((study.folder / "results.csv").read_text().splitlines()))
    keys = {(row["model"], row["seed"], row["case"], row["class"]) for row in rows}
    wanted = {(m, s, f"disc{c}", "mean") for m in MODELS.split(",") for s in "01" for c in range(6, 14)}
    assert keys == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        run = study.folder / "runs" / row["model"] / f"seed{row['seed']}" / "cases.csv"
        own = {r["case"]: r for r in csv.DictReader(run.read_text().splitlines())}
        assert all(float(row[name]) == pytest.approx(float(own[row["case"]][name]), nan_ok=True) for name in MEASURES)


def test_figures_are_of_the_masks_that_predict_writes(study, many, tmp_path):
    """Every training is calibrated; with the post-processing that it chose."""
    run = study.folder / "runs" / "unet" / "seed0"
    assert all(read_calibration(folder) is not None for folder in study.folder.glob("runs/*/seed*/"))
    ulna.predict(run, many, out=tmp_path / "masks", split="test")
    scores = ulna.evaluate(tmp_path / "masks", many)
    rows = csv.DictReader((study.folder / "results.csv").read_text().splitlines())
    told = {row["case"]: float(row["dice"]) for row in rows if (row["model"], row["seed"]) == ("unet", "0")}
    assert {case: scores.case_dice(case) for case in told} == pytest.approx(told, nan_ok=True)


def test_the_trainings_differ_in_architecture_and_seed_alone(study):
    recipes = [yaml.safe_load(path.read_text()) for path in sorted(study.folder.glob("runs/*/*/recipe.yaml"))]
    assert len(recipes) == 4
    for recipe in recipes:
        recipe.pop("architecture"), recipe.pop("model"), recipe["training"].pop("seed")
    assert all(recipe == recipes[0] for recipe in recipes)
    splits = {path.read_text() for path in study.folder.glob("runs/*/*/splits.json")}
    assert len(splits) == 1


def test_figures_are_those_of_the_runs(study):
    rows = list(csv.DictReader((study.folder / "results.csv").read_text().splitlines()))
    outcome = study.outcome
    for model in outcome.models:
        own = [float(row["dice"]) for row in rows if row["model"] == model]
        shared = [float(row["dice"]) for row in rows if row["model"] == model and row["group"] == "disc6"]
        alone = sum(own) - sum(shared)
        assert len(shared) == 4
        assert outcome.described[model]["dice"].mean == pytest.approx((alone + 2 * np.mean(shared)) / 14)
    assert (outcome.unit, outcome.units, outcome.cases) == ("patient", 7, 8)
    (pair,) = outcome.pairs
    assert pair.difference == pytest.approx(
        outcome.described[pair.a]["dice"].mean - outcome.described[pair.b]["dice"].mean
    )
    assert len(outcome.sentences) == 1
    text = (study.folder / "table.md").read_text()
    assert all(model in text for model in outcome.models)
    assert outcome.sentences[0] in text


def test_the_table_for_latex_has_a_cell_a_column_and_the_figures_of_the_study(study):
    comment, begin, top, head, middle, *rows, bottom, end = (study.folder / "table.tex").read_text().splitlines()
    assert comment.startswith("% 7 patients of 8 cases")
    columns = begin.removeprefix("\\begin{tabular}{").removesuffix("}")
    assert [top, middle, bottom, end] == ["\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"]
    cells = [re.split(r"(?<!\\) & ", row.removesuffix(" \\\\")) for row in (head, *rows)]
    assert {len(row) for row in cells} == {len(columns)}
    dice = next(i for i, cell in enumerate(cells[0]) if cell.startswith("Dice"))
    assert [row[dice + 1 : dice + 3] for row in cells] == [["n", "both empty"], ["7", "0"], ["7", "0"]]
    for model, row in zip(study.outcome.models, cells[1:], strict=True):
        mean = study.outcome.described[model]["dice"].mean
        assert (row[0], float(row[dice].split()[0])) == (model, pytest.approx(mean, abs=5e-4))


def test_latex_is_given_no_sign_that_it_takes_for_its_own():
    assert _escaped("a_b & c% #1 $x$ {y}") == r"a\_b \& c\% \#1 \$x\$ \{y\}"
    assert _escaped("x~y^2\\") == r"x\textasciitilde{}y\textasciicircum{}2\textbackslash{}"


def test_every_network_has_its_costs(study):
    for cost in study.outcome.costs.models.values():
        assert 0 < cost.wall_ms[0] <= cost.wall_ms[1]
        assert cost.cpu_ms > 0
        assert cost.prediction_mb > 50  # of a process that predicts; torch alone takes more


def test_the_page_needs_nothing_from_elsewhere(study):
    page = (study.folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert page.count('src="data:image/png;base64,') == 3, "drawings"
    assert page.count('src="data:image/jpeg;base64,') == 4 * (2 + 2), "image, reference and two networks of four cases"
    assert re.search(r"hardest cases.*?mean Dice", page, re.S | re.I)


def test_a_second_call_trains_nothing_and_gives_the_same(study, many, monkeypatch):
    before = {name: (study.folder / name).read_bytes() for name in TABLES}
    monkeypatch.setattr(comparing, "measure_costs", lambda *a, **k: study.outcome.costs)
    monkeypatch.setattr(subprocess, "Popen", None)
    compare(many, models=MODELS, out=study.folder, seeds=2, epochs=2, set=TINY, jobs=2)
    assert before == {name: (study.folder / name).read_bytes() for name in TABLES}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_trainings_names_the_command_that_goes_on(study, many, monkeypatch, number):
    before = signal.getsignal(number)

    def killed(*arguments, **named):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except Exception as error:  # as the readers of images turn any fault into one of the file
            raise UsageError("cannot be read") from error

    monkeypatch.setattr(comparing, "measure_costs", killed)
    with pytest.raises(Interrupted, match="go on with: ulna compare") as caught:
        compare(many, models=MODELS, out=study.folder, seeds=2, epochs=2, set=TINY)
    assert caught.value.signal == number
    assert signal.getsignal(number) == before


def test_other_settings_are_refused_and_nothing_is_lost(study, many):
    before = {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"other settings.*epochs: 2 there, epochs: 3 now"):
        compare(many, models=MODELS, out=study.folder, seeds=2, epochs=3, set=TINY)
    with pytest.raises(UsageError, match=r"other settings.*--match"):
        compare(many, models=MODELS, out=study.folder, seeds=2, epochs=2, set=TINY, match="params=5k")
    assert before == {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_one_seed_is_no_evidence(study, many):
    once = compare(many, models=MODELS, out=study.folder, seeds=1, epochs=2, set=TINY)
    assert "not evidence" in once.outcome.warning
    assert "not evidence" in once.outcome.sentences[0]
    assert "not evidence" in (study.folder / "table.md").read_text()
    alone = compare(many, models="unet", out=study.folder, seeds=1, epochs=2, set=TINY)
    assert (alone.outcome.pairs, alone.outcome.warning) == ([], "")
    assert "Pairs" not in (study.folder / "report.html").read_text()


@pytest.mark.slow
def test_a_study_is_told_to_a_tracker_also_after_it_was_finished(study, many, tmp_path, monkeypatch):
    out, server = shutil.copytree(study.folder, tmp_path / "b"), standing_in(monkeypatch, Server())
    monkeypatch.setattr(comparing, "write_outputs", lambda *_: None)
    compare(many, models=MODELS, out=out, seeds=2, epochs=2, set=TINY, track="mlflow")
    told = {run.name: run for run in server.runs.values()}
    assert told.keys() == {"b", *(f"{model} seed {seed}" for model in MODELS.split(",") for seed in (0, 1))}
    assert told["b"].at("unet/dice") == [(0, study.outcome.described["unet"]["dice"].mean)]
    assert [step for step, _ in told["unetpp seed 1"].at("train_loss")] == [1, 2]
    assert "disc" not in repr([vars(run) for run in told.values()])


@pytest.mark.slow
def test_a_ranking_over_data_sets_takes_finished_studies_beside(many, tmp_path):
    models, means = ("unet", "unetpp", "nnunet"), {"hearts": (0.9, 0.8, 0.7), "livers": (0.6, 0.5, 0.4)}
    for data, dice in means.items():
        (tmp_path / data).mkdir()
        described = {model: {"dice": {"mean": mean}} for model, mean in zip(models, dice, strict=True)}
        (tmp_path / data / "outcome.json").write_text(json.dumps({"data": data, "described": described}))
    beside = [str(tmp_path / data) for data in means]
    out = tmp_path / "ranked"
    study = compare(many, models=",".join(models), out=out, seeds=1, epochs=1, set=TINY, beside=beside)
    own = [study.outcome.described[model]["dice"].mean for model in models]
    places = [1 + sum(other > mine for other in own) for mine in own]
    expected = [(1 + 1 + places[0]) / 3, (2 + 2 + places[1]) / 3, (3 + 3 + places[2]) / 3]
    assert len(set(own)) == 3
    assert list(study.outcome.ranking.mean_ranks) == pytest.approx(expected)
    assert study.outcome.ranking.datasets == 3
    text = (out / "table.md").read_text()
    assert all(f"{model} {rank:.2f}" in text for model, rank in zip(models, expected, strict=True))
    assert "hearts, livers" in text
    assert (out / "figures" / "ranks.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_training_that_fails_is_listed_and_does_not_stop_the_others(many, tmp_path):
    out = tmp_path / "study"
    (out / "runs" / "unetpp").mkdir(parents=True)
    (out / "study.json").write_text("{}")
    with pytest.raises(UsageError, match=r"study\.json: damaged"):
        compare(many, models=MODELS, out=out, epochs=1, set=TINY)
    (out / "study.json").unlink()
    (out / "runs" / "unetpp").rmdir()
    (out / "runs").rmdir()
    with pytest.raises(PartialFailure) as caught:
        compare(
            many,
            models=MODELS,
            out=out,
            epochs=1,
            set=(*TINY, "optimizer.lr=1e30", "optimizer.kind=sgd"),
            vary=["optimizer.lr=1e-3,1e30"],
        )
    assert set(caught.value.failed) == {"unet optimizer.lr=1e30 seed 0", "unetpp optimizer.lr=1e30 seed 0"}
    assert all("lower optimizer.lr" in why for why in caught.value.failed.values())
    text = (out / "table.md").read_text()
    assert "unet optimizer.lr=1e-3" in text
    assert "failed" in text


@pytest.mark.parametrize(
    "damage",
    [{"plan": None}, {"plan": {"patch": [32, 32]}}, {"plan": {"patch": 32, "batch": 2}}, {"recipes": []},
     {"architectures": {"unet": None}}, {"format": "new"}, {"whole": {"unet": "all"}}, {"threads": -3}, {"threads": "2"}],
    ids=str,
)  # fmt: skip
def test_a_damaged_study_is_refused_with_the_name_of_its_file(study, many, tmp_path, damage):
    facts = json.loads((study.folder / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({**facts, **damage}))
    with pytest.raises(UsageError, match=r"study\.json: damaged .*; restore it, or choose another --out"):
        compare(many, models=MODELS, out=tmp_path, epochs=2, set=TINY)


def test_a_study_that_predicted_in_one_piece_is_not_gone_on_with_in_windows(study):
    """Earlier versions did not say how, and did so with every network."""
    before = stored_study(study.folder)
    assert before["whole"] == {"unet": 1024**2, "unetpp": 1024**2}
    now = {**before, "whole": {**before["whole"], "unetpp": 0, "nnunet": 0}}
    check_same(study.folder, now, dict(now))
    for earlier in (before, {**before, "whole": {}}):
        check_same(study.folder, earlier, dict(before))
        with pytest.raises(UsageError, match="unetpp predicts images larger than a patch in windows now") as caught:
            check_same(study.folder, earlier, dict(now))
        assert "nnunet" not in str(caught.value), "it is new"


def test_a_folder_of_something_else_is_refused(many, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else than a study"):
        compare(many, models=MODELS, out=tmp_path, epochs=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": "unett,unet"}, "did you mean 'unet'"),
        ({"models": ","}, "names no network"),
        ({"seeds": 0}, "--seeds 0"),
        ({"folds": 1}, "--folds 1"),
        ({"margin": 2.0}, "--margin 2"),
        ({"jobs": 0}, "--jobs 0"),
        ({"match": "flops=3"}, "params=8.5M or gmacs=3G"),
        ({"vary": ["loss.kind"]}, "expected KEY=V1,V2"),
        ({"folds": 3}, "one split"),
        ({"set": ["training.seed=3"]}, "use --seeds"),
        ({"vary": ["model=unet,unetpp"]}, "use --models"),
        ({"vary": ["training.split_seed=1,2"]}, "cannot be varied"),
        ({"beside": ["nowhere"]}, "no finished study"),
    ],
)
def test_wrong_usage_is_one_clear_sentence_and_writes_nothing(many, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        compare(many, **{"models": MODELS, "out": tmp_path / "study", "epochs": 1, **changes})
    assert not (tmp_path / "study").exists()


def test_the_printed_command_is_the_study_again(many, tmp_path, monkeypatch):
    """Also numbers that have no short form, and settings that only the conclusions need."""
    asked = {
        "models": MODELS,
        "seeds": 2,
        "max_hours": 1 / 3,
        "margin": 0.02,
        "jobs": 1,
        "set": [*TINY, "points.alpha=0.25"],
    }
    told = []
    monkeypatch.setattr(
        comparing, "run_jobs", lambda *a, resume_command, **k: told.append(resume_command) or {"x": "y"}
    )
    for number in range(2):
        with pytest.raises(UsageError, match="no network has all its trainings"):
            compare(many, out=tmp_path / "study", **asked)
        if number == 0:
            continue
    _, _, *words = shlex.split(told[0])
    assert cli.run(["compare", *words, "--quiet"]) == 2
    assert told[2] == told[1] == told[0]


def test_the_command_line_shows_the_table(study, many, capsys):
    settings = [word for setting in TINY for word in ("--set", setting)]
    code = cli.run(["compare", str(many), "--models", MODELS, "--seeds", "2", "--epochs", "2", *settings,
                    "--out", str(study.folder), "--quiet"])  # fmt: skip
    assert code == 0
    told = capsys.readouterr().out
    assert "7 patients of 8 cases (test), 2 seeds" in told
    assert "unetpp" in told


def start(many, out, log):
    settings = [word for setting in TINY for word in ("--set", setting)]
    arguments = [
        "compare",
        str(many),
        "--models",
        MODELS,
        "--seeds",
        "2",
        "--epochs",
        "2",
        *settings,
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "ulna.cli.main", *arguments], stdout=file, stderr=file, env=environment
        )


def results(out):
    """The scores, and what the table says beside times, memory and the folder's name."""
    head, _, pairs = (out / "table.md").read_text().partition("## Pairs")
    sentences = [line for line in head.splitlines() if line.startswith("- ")]
    rows = [line.split(" | ") for line in head.splitlines() if line.startswith("| ")]
    same = rows[0].index("epochs") + 1
    rows = [row[:same] for row in rows]
    assert len(sentences) == 1 and len(rows) == 3
    return (out / "results.csv").read_bytes(), sentences, rows, pairs.partition("```")[0]


@pytest.mark.slow(longest=True)
def test_a_study_killed_again_and_again_ends_with_the_same_table(many, tmp_path):
    whole, out, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log.txt"
    assert start(many, whole, log).wait(280) == 0, log.read_text()
    chance = random.Random(0)
    for _ in range(20 if ALL else 5):
        process = start(many, out, log)
        try:
            process.wait(chance.uniform(2.0, 10.0))
        except subprocess.TimeoutExpired:
            process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait(60)
    assert start(many, out, log).wait(280) == 0, log.read_text()
    assert results(out) == results(whole)


@pytest.mark.slow
def test_a_signal_stops_the_trainings_and_names_the_command_that_goes_on(many, tmp_path):
    out, log = tmp_path / "study", tmp_path / "log.txt"
    process = start(many, out, log)
    until = time.monotonic() + 120
    while not list(out.glob("runs/*/*/recipe.yaml")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    said = log.read_text()
    assert f"--out {out}" in said
    assert "go on with: ulna compare" in said
    begun = [path.parent for path in out.glob("runs/*/*/recipe.yaml")]
    assert all((run / "checkpoints").exists() for run in begun)


@pytest.mark.slow
def test_cases_that_hold_nothing_are_counted_and_left_out(many, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(many, root)
    for name in ("disc6", "disc7", "disc8"):  # of the test cases
        mask = np.asarray(Image.open(root / "labels" / f"{name}.png"))
        Image.fromarray(np.zeros_like(mask)).save(root / "labels" / f"{name}.png")
    study = compare(root, models=MODELS, out=tmp_path / "study", seeds=1, epochs=2, set=TINY)
    counts = {(one["dice"].units, one["dice"].undefined) for one in study.outcome.described.values()}
    assert {n + empty for n, empty in counts} == {7}
    rows = list(csv.DictReader((study.folder / "results.csv").read_text().splitlines()))
    assert {row["sensitivity"] for row in rows if row["case"] in ("disc6", "disc7", "disc8")} == {"nan"}
    assert np.isfinite(study.outcome.scores).all()
    assert "both empty" in (study.folder / "table.md").read_text()
