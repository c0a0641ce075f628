"""The page that `evaluate` writes beside its scores."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.evaluation.test_evaluate import folder, square
from ulna.cli.tables import show
from ulna.errors import UsageError
from ulna.pages.sealing import sealed, writer_of
from ulna.trust.page import check_page, retire_page


@pytest.fixture
def data(tmp_path):
    """Four images with squares, of which one is missed."""
    masks = {f"c{k}": square(2 + k) for k in range(4)}
    folder(tmp_path / "data" / "labels", masks)
    folder(tmp_path / "data" / "images", {name: 50 + 100 * mask for name, mask in masks.items()})
    folder(tmp_path / "masks", {"c0": square(2), "c1": square(5), "c2": square(4), "c3": 0 * square(0)})
    return tmp_path / "data"


def captions(page):
    return re.findall(r'<img [^>]*alt="(\w+) of (\w+)"', page)


def test_it_has_every_case_and_the_worst_with_their_images(data, tmp_path, capsys):
    found = ulna.evaluate(tmp_path / "masks", data, out=tmp_path / "scores")
    assert found.report == tmp_path / "scores" / "report.html" and writer_of(found.report) == "evaluate"
    assert found.to_json()["report"] == str(found.report)
    page = found.report.read_text("utf-8")
    assert re.findall(r'role="rowheader"><a[^>]*>(\w+)<', page) == ["c3", "c1", "c0", "c2"]
    assert captions(page)[:4] == [(name, "c3") for name in ("image", "reference", "prediction", "errors")]
    assert str(tmp_path) not in page and "Masks compared with their references" in page
    assert "Synthetic" not in page
    show("evaluate", found)
    assert f"page: {found.report}" in capsys.readouterr().out.replace("\n", "")


def test_without_images_it_shows_the_masks_alone(data, tmp_path):
    found = ulna.evaluate(tmp_path / "masks", data / "labels", out=tmp_path / "scores")
    page = found.report.read_text("utf-8")
    assert captions(page)[:3] == [(name, "c3") for name in ("reference", "prediction", "errors")]
    assert "<h1>data</h1>" in page


def test_an_image_that_cannot_be_read_is_no_reason_to_have_no_page(data, tmp_path):
    (data / "images" / "c3.png").write_bytes(b"no picture")
    page = ulna.evaluate(tmp_path / "masks", data, out=tmp_path / "scores").report.read_text("utf-8")
    assert ("image", "c3") not in captions(page) and ("image", "c1") in captions(page)


def test_data_that_say_so_are_called_synthetic(data, tmp_path):
    (data / "SYNTHETIC").write_text("made up")
    for labels in (data, data / "labels"):
        page = ulna.evaluate(tmp_path / "masks", labels, out=tmp_path / "scores").report.read_text("utf-8")
        assert "Synthetic data made by ulna" in page


def test_without_a_folder_there_is_no_page(data, tmp_path):
    assert ulna.evaluate(tmp_path / "masks", data).report is None
    assert "report" not in ulna.evaluate(tmp_path / "masks", data).to_json()


def test_a_page_of_its_own_is_replaced_and_no_other(data, tmp_path, caplog):
    out = tmp_path / "scores"
    first = ulna.evaluate(tmp_path / "masks", data, out=out).report.read_text("utf-8")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / "masks" / "c0.png")
    assert ulna.evaluate(tmp_path / "masks", data, out=out).report.read_text("utf-8") != first
    (out / "report.html").write_text(first.replace("c0", "mine"))
    with pytest.raises(UsageError, match=r"report\.html is not written by ulna, and would be replaced"):
        ulna.evaluate(tmp_path / "masks", data, out=out)
    (out / "report.html").write_text(sealed("of the masks", "predict"))
    with caplog.at_level(logging.INFO, "ulna"):
        assert ulna.evaluate(tmp_path / "masks", data, out=out).report is None
    assert "is the page of the prediction and stays" in caplog.text
    assert writer_of(out / "report.html") == "predict"


def test_a_prediction_may_put_its_page_in_place_of_that_of_scores_and_takes_only_its_own_away(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(sealed("scores", "evaluate"))
    check_page(tmp_path)
    retire_page(tmp_path)
    assert page.exists()
    page.write_text(sealed("scores", "evaluate") + " ")
    with pytest.raises(UsageError, match="is not written by ulna"):
        check_page(tmp_path)
