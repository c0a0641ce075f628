"""The page: complete, self-contained, escaped, sortable, small, and honest about synthetic data and missing values."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.evaluation.drawn import ShownCase, draw_case, extremes_shown, keep_shown, read_shown
from ulna.evaluation.listing import MOST_ROWS, list_cases
from ulna.evaluation.origins import of_predictions, of_run
from ulna.evaluation.report import Section, write_report
from ulna.pages.charts import MOST_POINTS, distribution, several, ticks, training
from ulna.pages.sealing import writer_of

NASTY = "<script>alert('x')</script>\"&"
BANNER = "Synthetic data made by ulna: these numbers say nothing about real images"
MEASURES = ("dice", "iou", "ppv", "sensitivity", "hd95", "assd", "nsd")
PICTURE = re.compile(r'src="data:image/(?:png|jpeg);base64,([^"]+)"')
EPOCHS = (
    "epoch,lr,train_loss,val_dice,val_iou,seconds\n1,0.001,0.9,0.5,0.33,2\n2,0.001,0.5,0.8,0.67,2\n3,0.001,0.4,,,2\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("model: unetpp\noptimizer:\n  lr: 0.001\n")
    (folder / "plan.yaml").write_text(
        "patch: [96, 96]\nspacing: null\nnormalization: [{kind: zscore, low: 0}, {kind: zscore, low: 0}]\n"
        "strides: [[2, 2], [2, 2]]\nmirror_axes: [0, 1]\n"
        "reasons: {patch: fits the smallest image, spacing: no file states one, normalization: colour, "
        "strides: two halvings, mirror_axes: no up}\n"
    )
    summary = {
        "model": "unetpp",
        "parameters": 2_261_234,
        "best_epoch": 2,
        "epochs": 3,
        "val_dice": 0.8,
        "wall_seconds": 90.0,
        "peak_memory_mb": 512,
        "versions": {"ulna": "0.1.0", "torch": "2.10.0"},
        "device": "cpu",
        "seed": 7,
        "split_hash": "9f2c81d0",
        "command": "ulna train data --model unetpp --seed 7",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def row(case: str, name: str, dice: float, **changes: Any) -> dict[str, Any]:
    return {"case": case, "class": name, **dict.fromkeys(MEASURES, dice), **changes}


def evaluation(
    classes: Sequence[str] = ("nucleus",), rows: Sequence[dict[str, Any]] = (), **changes: Any
) -> SimpleNamespace:
    score = {measure: {"mean": 0.8765, "low": 0.81, "high": 0.92} for measure in MEASURES}
    summary = {
        "cases": 12,
        "unit": "mm",
        "tolerance": 1.5,
        "classes": {name: dict(score) for name in classes},
        "mean": dict(score),
        "missing": [],
    }
    return SimpleNamespace(rows=rows, summary={**summary, **changes})


def case(name: str, dice: float, size: tuple[int, ...] = (24, 20), channels: int = 3) -> ShownCase:
    image = np.random.default_rng(0).integers(0, 255, (channels, *size), dtype=np.uint8)
    reference = np.zeros(size, np.uint8)
    reference[(slice(4, 12),) * len(size)] = 1
    return ShownCase.of(draw_case(name, dice, Volume(image, (1.0,) * len(size)), reference, np.roll(reference, 1, 0)))


def page(run: Path, evaluation: Any, cases: list[ShownCase], **options: Any) -> str:
    out = run.parent / "pages" / "report.html"
    options = {"synthetic": True, "title": "Nuclei", **options}
    written = write_report(
        out,
        evaluation,
        extremes_shown(cases),
        of_run(run, Path("predictions")),
        verb="train",
        table="cases.csv",
        **options,
    )
    assert written == out and [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert writer_of(out) == "train"
    return out.read_text("utf-8")


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_a_section_shows_all_its_cases_in_their_order_and_is_escaped(run) -> None:
    shown = Section(
        f"Real {NASTY}", (NASTY,), tuple(case(f"real_{k}", k / 10) for k in (3, 1, 2)), "ulna predict zoo:x"
    )
    html = page(run, evaluation(), [case("a", 0.5)], section=shown)
    behind = html.partition("How this was made")[2]
    assert re.findall(r'class="name">(real_\d)</span><span class="dice">Dice (0\.\d)00<', behind) == [
        ("real_3", "0.3"),
        ("real_1", "0.1"),
        ("real_2", "0.2"),
    ]
    assert len(PICTURE.findall(behind)) == 12 and "<script>" not in html and "ulna predict zoo:x" in behind
    assert "real_" not in page(run, evaluation(), [case("a", 0.5)])


def test_measures_beyond_the_table_have_one_of_their_own(run) -> None:
    scores = evaluation(rows=[row("c1", "nucleus", 0.4)])
    assert "Further measures" not in page(run, scores, [])
    for of in (scores.summary["mean"], *scores.summary["classes"].values()):
        of["pq"] = {"mean": 0.25, "low": 0.125, "high": 0.5}
    html = page(run, scores, [])
    assert re.search(r'<th scope="row">PQ</th><td>0\.250<small>0\.125 – 0\.500</small></td>', html)


def test_nothing_is_fetched_or_run_and_every_picture_is_embedded(run) -> None:
    (run / "metrics.csv").write_text(EPOCHS)
    html = page(run, evaluation(rows=[row("c1", "nucleus", 0.4)]), [case(f"c{k}", k / 10) for k in range(8)])
    markup = re.sub(r"base64,[^\"]+", "", html)
    assert not re.search(r"https?://|//[a-z]|url\(|@import|<script|<link(?! rel=\"icon\" href=\"data:,\")", markup)
    assert not re.search(r"<[^>]+\son\w+=", markup)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    pictures = PICTURE.findall(html)
    assert html.count("<img") == len(pictures) == 6 * 4
    for data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
    ids = re.findall(r' id="([^"]+)"', markup)
    assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', markup)) == {"case-2"} <= set(ids)


def test_the_curves_say_what_they_show(run) -> None:
    (run / "metrics.csv").write_text(EPOCHS)
    html = page(run, evaluation(), [])
    assert "best Dice 0.800, epoch 2" in html and "from 0.9 to 0.4 in 3 epochs" in html
    assert html.count("<polyline") == 3


def test_the_banner_stands_there_only_for_synthetic_data(run) -> None:
    assert BANNER in page(run, evaluation(), [], synthetic=True)
    assert BANNER not in page(run, evaluation(), [], synthetic=False)


def test_names_from_outside_are_escaped(run) -> None:
    (run / "recipe.yaml").write_text(f"model: |\n  {NASTY}</pre>\n")
    (run / "plan.yaml").write_text(json.dumps({"reasons": {NASTY: NASTY}}))
    (run / "summary.json").write_text(json.dumps({"model": NASTY, "command": NASTY, "versions": {NASTY: NASTY}}))
    scores = evaluation((NASTY, "b"), [row(NASTY, NASTY, 0.5), row(NASTY, "b", 0.5)], missing=[NASTY])
    html = page(run, scores, [case(NASTY, 0.5), case("b", 0.6)], title=NASTY)
    assert "<script" not in html and "alert(&#39;x&#39;)" in html
    assert not re.search(r'(alt|label)="[^"]*<', html)
    assert html.count("</pre>") == html.count("<pre")


def test_figures_units_and_tolerance_are_printed(run) -> None:
    text = words(page(run, evaluation(), []))
    for expected in ("0.876", "0.810 – 0.920", "HD95 (mm)", "ASSD (mm)", "NSD (≤ 1.5 mm)", "2.26 M", "best: 2", "1.5"):
        assert expected in text, expected
    for expected in ("mirror axes", "fits the smallest image", "patch: [96, 96]", "9f2c81d0", "torch 2.10.0"):
        assert expected in text, expected
    assert "ulna train data --model unetpp --seed 7" in text and "lr: 0.001" in text
    assert "not a medical device" in text.lower()


def test_where_a_training_began_is_named_without_its_folders(run) -> None:
    begins = "/home/dr grey/runs of mine/first run"
    (run / "recipe.yaml").write_text(f"training:\n  init: {begins.replace(' mine', chr(10) + '    mine')}\n")
    (run / "plan.yaml").write_text(json.dumps({"reasons": {"model": f"unet, the network of --init {begins}"}}))
    html = page(run, evaluation(), [])
    assert "grey" not in html and "the network of --init first run" in html and "init: first run" in html


def test_the_file_of_a_network_is_named_without_its_folders(run) -> None:
    name = "module:/home/grey/nets/own.py:Tiny"
    (run / "recipe.yaml").write_text(f"model: {name}\n")
    (run / "summary.json").write_text(json.dumps({"model": name, "parameters": 7}))
    html = page(run, evaluation(), [])
    assert "grey" not in html and html.count("module:own.py:Tiny") >= 3
    told = of_predictions({"model": name}, Path("masks"), Path("labels"), "1")
    assert told.model == "module:own.py:Tiny" and ("Model", told.model) in told.facts


def test_the_mean_has_a_row_of_its_own_only_among_several_classes(run) -> None:
    assert '<th scope="row">Mean</th>' not in page(run, evaluation(("a",)), [])
    assert '<th scope="row">Mean</th>' in page(run, evaluation(("a", "b")), [])


def test_undefined_and_missing_values_are_dashes(run) -> None:
    for name in ("summary.json", "plan.yaml", "recipe.yaml"):
        (run / name).unlink()
    empty = {measure: {"mean": None, "low": None, "high": math.nan} for measure in MEASURES}
    html = page(run, evaluation((), [row("c", "a", math.nan)], mean=empty, missing=["left_out"]), [])
    assert '<dd class="figure">–</dd>' in html and "left_out" in html
    assert "nan" not in html.lower() and ">None<" not in html


def test_the_lowest_and_the_highest_cases_are_drawn_and_no_case_twice(run) -> None:
    cases = [case(f"case{k}", dice) for k, dice in enumerate((0.5, math.nan, 0.9, 0.1, 0.7, 0.3))]
    html = page(run, evaluation(), cases)
    names = re.findall(r'class="name">(\w+)<', html)
    assert names == ["case3", "case5", "case2", "case4"]  # two lowest, two highest of five that are defined
    assert re.findall(r'class="name">(\w+)<', page(run, evaluation(), cases[:1])) == ["case0"]


@pytest.mark.parametrize(("size", "channels"), [((17, 900), 1), ((20, 24, 18), 2), ((1200, 1000), 3)])
def test_pictures_of_any_size_and_dimension_fit_a_small_page(run, size, channels) -> None:
    rows = [row(f"a case with a long name {k}", "nucleus", k / 2000) for k in range(2000)]
    html = page(run, evaluation(rows=rows), [case(f"c{k}", k / 10, size, channels) for k in range(6)])
    assert len(html.encode()) < 2_000_000
    assert ("Of every volume, the slice" in html) == (len(size) == 3)
    for data in PICTURE.findall(html):
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 400


def test_a_damaged_run_folder_is_named(run) -> None:
    (run / "summary.json").write_text("{")
    with pytest.raises(UsageError, match=r"summary\.json"):
        page(run, evaluation(), [])


def test_every_case_knows_its_place_by_every_column_the_worst_first() -> None:
    rows = [
        *(row("b", name, dice, hd95=9.0) for name, dice in (("x", 0.5), ("y", 0.7))),
        *(row("a", name, dice, hd95=1.0) for name, dice in (("x", 0.9), ("y", math.nan))),
        *(row("c", name, math.nan) for name in ("x", "y")),
    ]
    table = list_cases(rows, {"hd95": "mm"})
    headings = [(column.heading, column.remark) for column in table.columns]
    assert headings[:3] == [("Dice", "mean"), ("Dice", "x"), ("Dice", "y")] and ("HD95", "mm") in headings
    assert [line.case for line in table.lines] == ["b", "a", "c"]
    assert [line.cells[:3] for line in table.lines[:2]] == [["0.600", "0.500", "0.700"], ["0.900", "0.900", "–"]]
    by = {heading: [line.places[at + 1] for line in table.lines] for at, heading in enumerate(headings)}
    assert [line.places[0] for line in table.lines] == [1, 0, 2], "by name"
    assert by["Dice", "mean"] == [0, 1, 2] and by["HD95", "mm"] == [0, 1, 2], "a large distance is bad"


def test_of_very_many_cases_those_with_the_highest_dice_are_left_out() -> None:
    table = list_cases([row(f"c{k}", "x", k / 10_000) for k in range(MOST_ROWS + 5)], {})
    assert table.cut == 5 and len(table.lines) == MOST_ROWS and table.lines[-1].case == f"c{MOST_ROWS - 1}"


def test_slices_are_told_apart() -> None:
    assert [line.case for line in list_cases([row("a", "x", 0.1, slice=3)], {}).lines] == ["a, slice 3"]


def test_a_distribution_counts_every_case_once() -> None:
    chart = distribution("liver", [0.0, 0.26, 0.27, 1.0], 0.38)
    assert [bar.said for bar in chart.bars] == ["0.00 to 0.05: 1", "0.25 to 0.30: 2", "0.95 to 1.00: 1"]
    assert chart.bars[1].height == 2 * chart.bars[0].height
    assert "lowest 0.000" in chart.said and "median 0.265" in chart.said
    assert distribution("none", [], None).bars == []


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 2), (1, 1000), (0, 0.003), (-3.2, 8), (5, 5)])
def test_ticks_are_round_few_and_inside(low, high) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 5 and low <= found[0] and found[-1] <= high
    assert all(len(f"{value:g}") <= 6 for value in found)


def test_curves_of_any_length_are_drawn() -> None:
    epochs = [{"epoch": e, "train_loss": 1 / e, "val_dice": 0.5, "val_iou": 0.3} for e in range(1, 3001)]
    assert len(training(epochs)[0].lines[0].points.split()) <= MOST_POINTS + 1
    assert training([]) == [] and training([{"epoch": 1, "train_loss": math.nan, "val_dice": None}]) == []
    [loss] = training([{"epoch": 1, "train_loss": 0.5}])
    assert loss.lines[0].dots, "one epoch is a dot"
    assert several("folds", {"fold_0": epochs, "fold_1": []})[0].keys == [("one0", "fold_0")]


def test_what_a_page_shows_of_cases_is_read_again_for_that_of_all_folds(tmp_path) -> None:
    kept = [case("a", 0.25, (20, 24, 18), 1), case("b", math.nan)]
    keep_shown(tmp_path / "cases.json", kept)
    assert read_shown(tmp_path / "cases.json") == kept
    assert read_shown(tmp_path / "none.json") == []
    for text in ("{", "{}", json.dumps({"cases": [["a", 0.5, [["image", "https://x", 1, None]], False]]})):
        (tmp_path / "cases.json").write_text(text)
        assert read_shown(tmp_path / "cases.json") == []
    many = [case(f"c{k}", k / 20) for k in range(9)]
    assert [one.case for one in extremes_shown(many)] == ["c0", "c1", "c2", "c6", "c7", "c8"]
