"""The page: complete, self-contained, escaped, and honest about synthetic data and missing values."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ulna.errors import UsageError
from ulna.evaluation.report import ReportCase, Section, write_report

NASTY = "<script>alert('x')</script>\"&"
BANNER = "Synthetic data made by ulna: these numbers say nothing about real images"
MEASURES = ("dice", "iou", "ppv", "sensitivity", "hd95", "assd", "nsd")
PICTURE = re.compile(r'(?:src|srcset)="data:image/(?:png|jpeg);base64,([^"]+)"')


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


def evaluation(classes: tuple[str, ...] = ("nucleus",), **changes: Any) -> SimpleNamespace:
    score = {measure: {"mean": 0.8765, "low": 0.81, "high": 0.92} for measure in MEASURES}
    summary = {
        "cases": 12,
        "unit": "mm",
        "tolerance": 1.5,
        "classes": {name: dict(score) for name in classes},
        "mean": dict(score),
        "missing": [],
    }
    return SimpleNamespace(rows=[], summary={**summary, **changes})


def case(name: str, dice: float, size: tuple[int, ...] = (24, 20), channels: int = 3) -> ReportCase:
    image = np.random.default_rng(0).integers(0, 255, (channels, *size), dtype=np.uint8)
    reference = np.zeros(size, np.uint8)
    reference[(slice(4, 12),) * len(size)] = 1
    return ReportCase(name, image, reference, np.roll(reference, 1, 0), dice)


def page(run: Path, evaluation: Any, cases: list[ReportCase], **options: Any) -> str:
    out = run.parent / "pages" / "report.html"
    options = {"synthetic": True, "title": "Nuclei", **options}
    written = write_report(run, Path("predictions"), evaluation, cases, out, **options)
    assert written == out and [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text("utf-8")


def test_a_section_draws_all_its_cases_in_their_order_and_is_escaped(run) -> None:
    shown = Section(
        f"Real {NASTY}", (NASTY,), tuple(case(f"real_{k}", k / 10) for k in (3, 1, 2)), "ulna predict zoo:x"
    )
    html = page(run, evaluation(), [case("a", 0.5)], section=shown)
    behind = html.partition("How this run was made")[2]
    assert re.findall(r'class="name">(real_\d)</span><span class="dice">Dice (0\.\d)00<', behind) == [
        ("real_3", "0.3"),
        ("real_1", "0.1"),
        ("real_2", "0.2"),
    ]
    assert len(PICTURE.findall(behind)) == 12 and "<script>" not in html and "ulna predict zoo:x" in behind
    assert "real_" not in page(run, evaluation(), [case("a", 0.5)])


def test_nothing_is_fetched_and_every_picture_is_embedded(run) -> None:
    (run / "metrics.csv").write_text(
        "epoch,lr,train_loss,val_dice,val_iou,seconds\n1,0.001,0.9,0.5,0.33,2\n2,0.001,0.5,0.8,0.67,2\n3,0.001,0.4,,,2\n"
    )
    html = page(run, evaluation(), [case(f"c{k}", k / 10) for k in range(8)])
    markup = re.sub(r"base64,[^\"]+", "", html)
    assert not re.search(r"https?://|//[a-z]|url\(|@import|<script|<link(?! rel=\"icon\" href=\"data:,\")", markup)
    assert "default-src 'none'" in html
    assert html.count("<img") == 6 * 4 + 1 and html.count("<source") == 1
    pictures = PICTURE.findall(html)
    assert len(pictures) == 6 * 4 + 2
    for data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()


def test_the_banner_stands_there_only_for_synthetic_data(run) -> None:
    assert BANNER in page(run, evaluation(), [], synthetic=True)
    assert BANNER not in page(run, evaluation(), [], synthetic=False)


def test_names_from_outside_are_escaped(run) -> None:
    (run / "recipe.yaml").write_text(f"model: |\n  {NASTY}</pre>\n")
    (run / "plan.yaml").write_text(json.dumps({"reasons": {NASTY: NASTY}}))
    (run / "summary.json").write_text(json.dumps({"model": NASTY, "command": NASTY, "versions": {NASTY: NASTY}}))
    scores = evaluation((NASTY, "b"), missing=[NASTY])
    html = page(run, scores, [case(NASTY, 0.5), case("b", 0.6)], title=NASTY)
    assert "<script" not in html and "alert(&#39;x&#39;)" in html
    assert not re.search(r'alt="[^"]*<', html)
    assert html.count("</pre>") == html.count("<pre")


def test_figures_units_and_tolerance_are_printed(run) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page(run, evaluation(), [])))
    for expected in ("0.876", "0.810 – 0.920", "HD95 (mm)", "ASSD (mm)", "NSD (≤ 1.5 mm)", "2.26 M", "best: 2", "1.5"):
        assert expected in text, expected
    for expected in ("mirror axes", "fits the smallest image", "patch: [96, 96]", "9f2c81d0", "torch 2.10.0"):
        assert expected in text, expected
    assert "ulna train data --model unetpp --seed 7" in text and "lr: 0.001" in text
    assert "not a medical device" in text.lower()


def test_the_mean_has_a_row_of_its_own_only_among_several_classes(run) -> None:
    assert '<th scope="row">Mean</th>' not in page(run, evaluation(("a",)), [])
    assert '<th scope="row">Mean</th>' in page(run, evaluation(("a", "b")), [])


def test_undefined_and_missing_values_are_dashes(run) -> None:
    for name in ("summary.json", "plan.yaml", "recipe.yaml"):
        (run / name).unlink()
    empty = {measure: {"mean": None, "low": None, "high": math.nan} for measure in MEASURES}
    html = page(run, evaluation(classes=(), mean=empty, missing=["left_out"]), [])
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
    html = page(run, evaluation(), [case(f"c{k}", k / 10, size, channels) for k in range(6)])
    assert len(html.encode()) < 3_000_000
    for data in PICTURE.findall(html):
        assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) <= 400


def test_a_damaged_run_folder_is_named(run) -> None:
    (run / "summary.json").write_text("{")
    with pytest.raises(UsageError, match=r"summary\.json"):
        page(run, evaluation(), [])
