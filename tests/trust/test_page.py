"""The page of a prediction: complete, self-contained, escaped, bounded, the same whenever it is made, true of its masks."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_predict import run_folder
from tests.inference.test_trust import TOLD, calibrated
from ulna.cli.main import run as command
from ulna.data.volume import Volume
from ulna.errors import Interrupted, PartialFailure, UsageError
from ulna.evaluation.colours import CLASS_COLOURS
from ulna.recipe import Labels
from ulna.trust import page as pages
from ulna.trust import pictures
from ulna.trust.dice import Line, Lines
from ulna.trust.pictures import draw_case

NASTY = "<script>alert(1)</script> \"&'"
LINE = Line(intercept=0.0, slope=1.0, within=0.1, error=0.05, error_of_mean=0.1, cases=9)
LINES = Lines(mean=LINE, classes={"foreground": LINE})
MIRRORED = {"mirrored": LINES, "copies": LINES}


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.pictures, self.open = [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag == "style":
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag == "style":
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.words.append(data)

    def ids(self):
        return [values["id"] for _, values in self.tags if "id" in values]


@pytest.fixture
def run(tmp_path):
    return calibrated(run_folder(tmp_path / "run", 0, fingerprint=TOLD), dice=MIRRORED)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (32, 40)), ("b", (28, 32)), ("odd", (150, 160))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def page_of(out):
    return Page((out / "report.html").read_text("utf-8"))


def decoded(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))


def test_it_lists_every_case_the_least_trusted_first_with_pictures(run, images, tmp_path):
    made = ulna.predict(run, images, out=tmp_path / "out", report=True)
    assert made.report == tmp_path / "out" / "report.html" and made.to_json()["report"] == str(made.report)
    page = page_of(tmp_path / "out")
    rows = {row["case"]: row["trust"] for row in json.loads((tmp_path / "out" / "predict.json").read_text())["cases"]}
    order = sorted(rows, key=lambda case: (-len(rows[case]["flags"]), rows[case]["predicted_dice"]["mean"]["dice"]))
    assert order[0] == "odd"
    shown = re.findall(r"#case-\d+\">([^<]+)<", (tmp_path / "out" / "report.html").read_text())
    assert shown == order
    assert "field of view is 150 x 160 px" in page.text
    for trust in rows.values():
        dice = trust["predicted_dice"]["mean"]
        assert f"{dice['dice']:.2f} {dice['low']:.2f} – {dice['high']:.2f}" in page.text
        found = trust["structures"]["foreground"]
        assert f"{found['objects']} object" in page.text
    images_of = [one for one in page.pictures if one.get("class") != "lines"]
    assert [one["alt"] for one in images_of] == order
    assert len(page.pictures) == 2 * len(order)
    assert "mirrored copies agree" in page.text


def test_it_fetches_nothing_runs_nothing_and_every_link_leads_somewhere(run, images, tmp_path):
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    page = page_of(tmp_path / "out")
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "form")]
    policy = next(values["content"] for tag, values in page.tags if values.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for _, values in page.tags:
        for name in ("src", "href", "srcset"):
            if name in values:
                assert values[name].startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in values)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    links = [values["href"][1:] for tag, values in page.tags if tag == "a"]
    assert links and set(links) <= set(ids)
    assert str(tmp_path) not in (tmp_path / "out" / "report.html").read_text()
    assert all("alt" in one for one in page.pictures)


def test_names_of_cases_and_classes_are_text(tmp_path):
    (tmp_path / "images").mkdir()
    name = "<img src=x onerror=alert(1)>\"&'"
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    run = run_folder(tmp_path / "run", 0, fingerprint=TOLD, labels=Labels(names=("background", NASTY, "b\x1b[31m")))
    ulna.predict(run, tmp_path / "images", out=tmp_path / "out", report=True)
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert "<script" not in text and "onerror" not in " ".join(str(tag) for tag, _ in page.tags)
    assert "\x1b" not in text and "b\\x1b[31m" in page.text
    assert name in page.text and NASTY in page.text
    assert not [values for tag, values in page.tags if tag == "img" and not values["src"].startswith("data:")]


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (3, 7)])
@pytest.mark.share(2)
def test_the_outline_lies_where_the_mask_is(images, tmp_path, values):
    run = calibrated(run_folder(tmp_path / "run", 0, fingerprint=TOLD, mask_values=values), dice=MIRRORED)
    ulna.predict(run, images / "odd.png", out=tmp_path / "out", report=True)
    mask = np.asarray(Image.open(tmp_path / "out" / "odd.png")) == values[1]
    shot = decoded(next(one["src"] for one in page_of(tmp_path / "out").pictures if one.get("class") == "lines"))
    height, width = shot.shape[:2]
    assert max(height, width) == pictures.PIXELS
    rows, columns = ((np.arange(n) * m // n) for n, m in ((height, 150), (width, 160)))
    drawn = shot[..., 3] > 0
    assert drawn.any() and not (drawn & ~mask[np.ix_(rows, columns)]).any()
    assert {tuple(colour) for colour in shot[drawn][:, :3]} == {CLASS_COLOURS[0]}


def test_a_second_call_makes_the_same_page_and_no_mask(run, images, tmp_path, monkeypatch):
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    first = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    monkeypatch.setattr("ulna.inference.segmenter.Segmenter.mask", None)
    again = ulna.predict(run, images, out=tmp_path / "out", report=True)
    assert len(again.skipped) == 3
    assert (tmp_path / "out" / "report.html").read_bytes() == first
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.png",
        "b.png",
        "odd.png",
        "predict.json",
        "report.html",
    ]


def test_masks_are_those_of_a_call_without_it_and_stay_where_they_are(run, images, tmp_path):
    ulna.predict(run, images, out=tmp_path / "plain")
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    for name in ("a.png", "b.png", "odd.png"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    later = ulna.predict(run, images, out=tmp_path / "plain", report=True)
    assert len(later.skipped) == 3
    page = page_of(tmp_path / "plain")
    assert "no answers were compared" in page.text  # the copies were not made for masks that were there
    assert ulna.predict(run, images, out=tmp_path / "out").skipped == ("a", "b", "odd")


def test_copies_tell_the_same_dice_as_tta_and_the_cost_is_said(run, images, tmp_path, caplog):
    caplog.set_level("INFO", "ulna")
    ulna.predict(run, images / "a.png", out=tmp_path / "tta", tta=True)
    ulna.predict(run, images / "a.png", out=tmp_path / "out", report=True)
    told = [json.loads((tmp_path / f / "predict.json").read_text())["cases"][0]["trust"] for f in ("tta", "out")]
    assert [one["predicted_dice"].pop("from") for one in told] == ["mirrored", "copies"]
    assert told[0]["predicted_dice"] == told[1]["predicted_dice"]  # the lines of this run are the same
    assert [line for line in caplog.messages if "predicts every image 4 times" in line]


def test_a_failed_case_is_listed_with_its_reason(run, images, tmp_path):
    (images / "bad.png").write_bytes((images / "odd.png").read_bytes()[:100])
    with pytest.raises(PartialFailure) as failure:
        ulna.predict(run, images, out=tmp_path / "out", report=True)
    assert failure.value.result.report == tmp_path / "out" / "report.html"
    page = page_of(tmp_path / "out")
    why = json.loads((tmp_path / "out" / "predict.json").read_text())["failed"]["bad"]
    assert f"bad {why}" in page.text
    assert "4 cases, segmented by unet" in page.text
    with pytest.raises(UsageError, match="no case could be predicted"):
        ulna.predict(run, images / "bad.png", out=tmp_path / "none", report=True)
    assert "Failed, without a mask" in page_of(tmp_path / "none").text


def test_of_many_cases_few_have_pictures_and_the_page_says_so(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "SHOWN", 3)
    for number in range(9):
        shutil.copy(images / "a.png", images / f"copy{number}.png")
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    page = page_of(tmp_path / "out")
    assert len(page.pictures) == 2 * 3
    assert "Of the first 3 of 12 cases alone" in page.text
    assert all(f"copy{number}" in page.text for number in range(9))


def test_a_file_of_others_is_never_replaced_nor_a_page_that_was_changed(run, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    with pytest.raises(UsageError, match=r"report.html is not written by ulna"):
        ulna.predict(run, images, out=out, report=True)
    assert not list(out.glob("*.png"))
    ulna.predict(run, images / "a.png", out=out)
    assert (out / "report.html").read_text() == "mine"
    (out / "report.html").unlink()
    ulna.predict(run, images / "a.png", out=out, report=True)
    with (out / "report.html").open("a") as file:
        file.write("a remark")
    with pytest.raises(UsageError, match=r"report.html is not written by ulna"):
        ulna.predict(run, images / "a.png", out=out, report=True)


def test_a_page_goes_when_its_masks_change(run, images, tmp_path):
    ulna.predict(run, images / "a.png", out=tmp_path / "out", report=True)
    ulna.predict(run, images / "a.png", out=tmp_path / "out")
    assert (tmp_path / "out" / "report.html").exists()  # nothing changed
    ulna.predict(run, images, out=tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()


def test_stopped_while_drawing_it_leaves_masks_and_no_half_page(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "draw_case", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=r"3 of 3 cases are done.*--report"):
        ulna.predict(run, images, out=tmp_path / "out", report=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", "odd.png", "predict.json"}
    monkeypatch.undo()
    assert len(ulna.predict(run, images, out=tmp_path / "out", report=True).skipped) == 3
    assert (tmp_path / "out" / "report.html").exists()


def test_a_case_that_cannot_be_drawn_costs_its_picture_alone(run, images, tmp_path, monkeypatch):
    draw = pages.draw_case

    def fails(volume, *args, **options):
        if volume.path.stem == "b":
            raise MemoryError
        return draw(volume, *args, **options)

    monkeypatch.setattr(pages, "draw_case", fails)
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    page = page_of(tmp_path / "out")
    assert "no picture: MemoryError" in page.text and len(page.pictures) == 4


def test_a_run_without_calibration_masks_of_earlier_versions_and_damaged_words(images, tmp_path):
    run = run_folder(tmp_path / "run", 0)
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    assert "the run holds no calibration" in page_of(tmp_path / "out").text
    path = tmp_path / "out" / "predict.json"
    facts = json.loads(path.read_text())
    del facts["cases"][0]["trust"]
    facts["cases"][1]["trust"] = {"format": 1, "flags": 7, "structures": {"x": [NASTY]}}
    path.write_text(json.dumps(facts))
    ulna.predict(run, images, out=tmp_path / "out", report=True)
    page = page_of(tmp_path / "out")
    assert page.text.count("not known: an earlier version of ulna wrote this mask") == 2
    assert len(page.pictures) == 6


def test_rows_of_an_npz_an_ensemble_and_a_split(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (4, 24, 32), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=values, ids=np.array(list("abcd")))
    runs = [run_folder(tmp_path / f"run{n}", n, fingerprint=TOLD) for n in range(2)]
    ulna.predict(runs, tmp_path / "x.npz", out=tmp_path / "out", report=True)
    page = page_of(tmp_path / "out")
    assert len(page.pictures) == 8 and "2 runs: run0, run1" in page.text
    assert "several networks agree" in page.text and "no case was held back" in page.text
    ulna.predict(runs[0], tmp_path / "x.npz", out=tmp_path / "val", split="val", report=True)
    assert page_of(tmp_path / "val").text.startswith("1 case")
    assert "split val" in page_of(tmp_path / "val").text


def test_the_command_says_where_it_is_and_takes_no_value(run, images, tmp_path, capsys):
    words = ["predict", str(run), str(images), "--out", str(tmp_path / "out")]
    assert command([*words, "--report"]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert command([*words, "--report=some"]) == 2
    assert command([*words, "--reports"]) == 2


def volume_of(size, affine=None):
    array = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    spacing = (1.0,) * 3 if affine is None else tuple(np.abs(np.diag(affine)[:3]))
    return Volume(array, spacing, "px" if affine is None else "mm", affine)


def test_a_volume_shows_the_largest_slice_of_each_structure_and_three_planes():
    labels = Labels(names=("background", "a", "b", "c"))
    mask = np.zeros((20, 24, 10), np.uint8)
    mask[2:10, 2:10, 3] = 1
    mask[2:4, 2:4, 4:8] = 1
    mask[12:18, 12:18, 6] = 2
    volume = volume_of(mask.shape, np.diag([1.0, 1.0, 3.0, 1.0]))
    shots = draw_case(volume, mask, labels, ["b", "a", "c"], planes=True)
    assert [shot.caption for shot in shots] == [
        "largest area of b, axial",
        "largest area of a, axial",
        "sagittal",
        "coronal",
    ]
    yellow, blue = CLASS_COLOURS[:2]
    drawn = [decoded(shot.lines) for shot in shots[:2]]
    first, second = ({tuple(colour) for colour in lines[lines[..., 3] > 0][:, :3]} for lines in drawn)
    assert first == {yellow, blue} and second == {yellow}
    sagittal = shots[2]  # 24 mm by 30 mm, as in the body, and not 24 by 10 voxels
    assert (sagittal.width, sagittal.height) == (384, 480)
    assert (sagittal.sides.left, sagittal.sides.top) == ("A", "S")


def test_structures_that_are_largest_in_one_slice_share_a_picture_and_an_empty_mask_has_one():
    labels = Labels(names=("background", "a", "b"))
    mask = np.zeros((16, 16, 5), np.uint8)
    mask[2:6, 2:6, 2], mask[8:12, 8:12, 2] = 1, 2
    (shot,) = draw_case(volume_of(mask.shape), mask, labels, ["a", "b"], planes=False)
    assert shot.caption == "largest area of a, b" and shot.sides is None
    (empty,) = draw_case(volume_of(mask.shape), np.zeros_like(mask), labels, ["a", "b"], planes=False)
    assert empty.caption == "middle slice" and not decoded(empty.lines)[..., 3].any()


def test_colour_stays_colour_and_a_large_image_becomes_small():
    image = np.zeros((3, 1000, 1500), np.uint8)
    image[0] = 200
    labels = Labels(names=("background", "a"))
    mask = np.zeros((1000, 1500), np.uint8)
    mask[100:300, 100:300] = 1
    (shot,) = draw_case(Volume(image, (1.0, 1.0)), mask, labels, ["a"], planes=False)
    picture = decoded(shot.image)
    assert picture.shape[:2] == (320, 480)
    red, green, blue = picture[..., :3].reshape(-1, 3).mean(0)
    assert red > 190 and green < 10 and blue < 10
