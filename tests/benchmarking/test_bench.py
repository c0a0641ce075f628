"""The benchmark of the Implicit U-Net's choices: every row measured, every error one sentence."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from ulna.benchmarking import curves, implicit
from ulna.benchmarking.bench import bench
from ulna.benchmarking.curves import draw_curves
from ulna.benchmarking.implicit import MESH_STEP, MESH_STEPS, MODEL
from ulna.demonstration import STATEMENT
from ulna.errors import Interrupted, PartialFailure, UsageError
from ulna.networks.catalog import NAMED
from ulna.planning.choosing import recommended
from ulna.study.statistics import Description
from ulna.study.variants import make_variants

TINY = (
    "architecture.channels=[4, 6]",
    "architecture.head.points.depth=1",
    "planning.patch=[24, 24, 16]",
    "planning.batch=2",
    "training.samples_per_epoch=2",
    "training.min_steps=1",
)
FEW = {
    "points.fraction": ("points", (1 / 64, 1 / 32)),
    "points.sigma": ("sigma", (1, 5)),
}


def test_an_unknown_benchmark_names_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="valid: implicit"):
        bench("implicite", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_unvaried_network_is_trained_as_recommended():
    changes = [f"{key}={value}" for key, value in NAMED[MODEL].recipe.items()]
    (found,) = make_variants([MODEL], {}, [], changes)
    for part in ("architecture", "loss", "points", "inference"):
        assert getattr(found.recipe, part) == getattr(recommended(MODEL), part)


def study(folder: Path, *rows: tuple[str, float], failed: tuple[str, ...] = ()) -> SimpleNamespace:
    """What the bench reads of a study: models with their mean Dice."""
    models = [name for name, _ in rows]
    outcome = SimpleNamespace(
        models=models,
        described={name: {"dice": Description(dice, math.nan, math.nan, None, None, 1)} for name, dice in rows},
        epochs=dict.fromkeys(models, 4),
        hours=dict.fromkeys(models, 0.01),
        training_mb=dict.fromkeys(models, 500.0),
        costs=SimpleNamespace(models={name: SimpleNamespace(wall_ms=(7.0, 9.0)) for name in models}),
    )
    return SimpleNamespace(folder=folder, outcome=outcome, failed=dict.fromkeys(failed, "killed"))


def test_rows_know_the_networks_own_value_and_leave_out_what_failed(tmp_path):
    found = study(tmp_path, (MODEL, 0.8), (f"{MODEL} points.sigma=1", 0.7), failed=(f"{MODEL} points.sigma=10",))
    rows = list(implicit._training_rows(found, "points.sigma", (1, 5, 10), 5.0))
    assert [(row["value"], row["base"], row["dice"][0]) for row in rows] == [(1, False, 0.7), (5, True, 0.8)]
    assert rows[0]["dice"][1:] == [None, None]  # one case has no interval, and JSON no NaN
    assert rows[0]["epoch_s"] == pytest.approx(9)
    other = list(implicit._training_rows(found, "points.sigma", (1, 10), 5.0))
    assert [row["value"] for row in other if row["base"]] == [5]


@pytest.mark.parametrize(
    ("holds", "data", "message"),
    [
        ({"mine.txt": "x"}, None, "holds something else"),
        ({"data/images/a.png": "x"}, None, "holds something else"),
        ({"study/study.json": "{}"}, None, "name it again"),
        ({"data/SYNTHETIC": STATEMENT}, "volumes", "begun with synthetic data"),
        (None, None, "is a file"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path, holds, data, message):
    out = tmp_path / "out"
    if holds is None:
        out.write_text("mine", encoding="utf-8")
    for name, text in (holds or {}).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        bench("implicit", data, out=out)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_wrong_change_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="sigmma"):
        bench("implicit", out=tmp_path / "out", set=["points.sigmma=1"])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be written"):
        bench("implicit", out=tmp_path / "file" / "out")


def test_after_a_stop_the_bench_itself_goes_on(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted(15, "ulna compare ...")

    monkeypatch.setattr(implicit, "compare", stopped)
    with pytest.raises(Interrupted) as stop:
        bench("implicit", "volumes", out=tmp_path / "out", epochs=3, set=["points.alpha=0.3"])
    assert (
        stop.value.resume == f"ulna bench implicit volumes --epochs 3 --set points.alpha=0.3 --out {tmp_path / 'out'}"
    )


def test_curves_show_every_value_and_mark_the_networks_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "write_figure", lambda figure, path: drawn.append(figure) or path)
    rows = [
        {
            "field": "a",
            "value": value,
            "base": value == 1,
            "dice": [0.8, 0.7, None],
            "epoch_s": 2.0,
            "training_mb": 100.0,
        }
        for value in (1, 1 / 32)
    ]
    rows += [
        {
            "field": "b",
            "value": 4,
            "base": True,
            "dice": [0.9, 0.8, 0.95],
            "prediction_ms": 3.0,
            "prediction_mb": 90.0,
            "asked": 0.1,
        }
    ]
    draw_curves(rows, {"a": "first", "b": "second"}, tmp_path / "curves.png", conditions="here")
    top_left, top_right = drawn[0].axes[:2]
    assert [label.get_text() for label in top_left.get_xticklabels()] == ["1/32", "1"]
    assert top_left.get_ylim() == top_right.get_ylim()
    marks = [line for line in top_left.lines if line.get_marker() == "o"]
    filled = [line.get_xdata()[0] for line in marks if line.get_markerfacecolor() == line.get_color()]
    assert filled == [1]
    assert [axes.get_xlabel() for axes in drawn[0].axes[-2:]] == ["first", "second"]
    plt.close("all")


def test_curves_of_nothing_measurable_have_a_scale(tmp_path):
    """A training or a prediction too short for the clock costs 0."""
    row = {"field": "a", "value": 1, "base": True, "dice": [0.8, 0.8, 0.8], "epoch_s": 0.0, "training_mb": 0.0}
    assert draw_curves([row], {"a": "first"}, tmp_path / "curves.png", conditions="here").exists()


@pytest.mark.slow
def test_every_choice_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(implicit, "VARIED", FEW)
    monkeypatch.setattr(implicit, "COUNT", 10)
    monkeypatch.setattr(implicit, "SIZE", (24, 24, 16))
    made = bench("implicit", out=tmp_path / "out", epochs=1, set=TINY)
    rows = made.facts["rows"]
    for field, (_, values) in FEW.items():
        assert [row["value"] for row in rows if row["field"] == field] == list(values)
        assert sum(row["base"] for row in rows if row["field"] == field) == 1
    meshes = [row for row in rows if row["field"] == MESH_STEP]
    assert [row["value"] for row in meshes] == list(MESH_STEPS)
    assert meshes[0]["asked"] == 1  # every voxel
    base = next(row for row in rows if row["field"] == "points.sigma" and row["base"])
    assert next(row for row in meshes if row["base"])["dice"] == pytest.approx(base["dice"])
    stored = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert stored["conditions"]["synthetic"]
    assert "One seed" in stored["warning"]
    assert (tmp_path / "out" / "curves.png").exists()
    runs = sorted((tmp_path / "out" / "study" / "runs").glob("*/seed0/weights.safetensors"))
    before = [run.stat().st_mtime_ns for run in runs]
    bench("implicit", out=tmp_path / "out", epochs=1, set=TINY)  # trains nothing again
    assert [run.stat().st_mtime_ns for run in runs] == before
    assert len(runs) == made.facts["trainings"] == 3

    real = implicit.compare

    def one_failed(*given, **named):
        found = real(*given, **named)
        failed = {f"{MODEL} points.sigma=1 seed 0": "killed"}
        found.outcome.models.remove(f"{MODEL} points.sigma=1")
        raise PartialFailure(failed, 2, "trainings", replace(found, failed=failed))

    monkeypatch.setattr(implicit, "compare", one_failed)
    with pytest.raises(PartialFailure, match="1 of 3 trainings"):
        bench("implicit", out=tmp_path / "out", epochs=1, set=TINY)
    stored = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert [row["value"] for row in stored["rows"] if row["field"] == "points.sigma"] == [5]
