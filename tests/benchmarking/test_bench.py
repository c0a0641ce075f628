"""The benchmark of the Implicit U-Net's choices: every row measured, every error one sentence."""

import json

import pytest
from PIL import Image

from ulna.benchmarking.bench import bench
from ulna.benchmarking.curves import draw_curves
from ulna.benchmarking.implicit import SPACING, SPACINGS, VARIED
from ulna.errors import UsageError

TINY = ("architecture.channels=[4, 6]", "planning.batch=2", "architecture.head.points.depth=1")


def test_an_unknown_benchmark_names_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="implicit"):
        bench("implicite", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="is a file"):
        bench("implicit", out=tmp_path / "out")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_curves_are_drawn_for_every_field(tmp_path):
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
    rows += [{"field": "b", "value": 4, "base": True, "dice": [0.9, 0.8, 0.95], "prediction_ms": 3.0, "asked": 0.1}]
    figure = draw_curves(rows, {"a": "first", "b": "second"}, tmp_path / "curves.png", conditions="here")
    with Image.open(figure) as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_every_choice_is_measured(tmp_path):
    made = bench("implicit", out=tmp_path / "out", epochs=1, set=TINY)
    rows = made.facts["rows"]
    for field, (_, values) in VARIED.items():
        assert [row["value"] for row in rows if row["field"] == field] == list(values)
        assert sum(row["base"] for row in rows if row["field"] == field) == 1
    meshes = [row for row in rows if row["field"] == SPACING]
    assert [row["value"] for row in meshes] == list(SPACINGS)
    assert meshes[0]["asked"] == 1  # every voxel
    stored = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert stored["conditions"]["synthetic"]
    assert (tmp_path / "out" / "curves.png").exists()
    runs = sorted((tmp_path / "out" / "study" / "runs").glob("*/seed0/weights.safetensors"))
    before = [run.stat().st_mtime_ns for run in runs]
    bench("implicit", out=tmp_path / "out", epochs=1, set=TINY)  # trains nothing again
    assert [run.stat().st_mtime_ns for run in runs] == before
    assert len(runs) == 13
