"""Names that somebody else chose, through the whole path: no terminal, log, page or table obeys them."""

import csv
import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.errors import UsageError, brief, printable, printable_lines, unknown
from ulna.system.files import cell, from_cell

NASTY = "na\x1b[31ms\x07ty\nerror: \u202e[bold red]x[/]{{ 7*7 }}<b>&"
CLASSES = ["background", "=li\x1b]0;owned\x07ver\n[red]", "[/]$x$\x9b2J"]
IDS = ["+1+1", "-2", "=3", "@4", "5", "6", "7", "8"]


def harmless(text):
    """Whether a text can be shown: printable, but for line breaks."""
    return all(c.isprintable() or c in "\n\t" for c in text)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A data set all of whose names are nasty."""
    root = tmp_path_factory.mktemp("names") / NASTY.replace("/", "")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for name in IDS:
        mask = np.zeros((32, 32), np.uint8)
        mask[4:14, 4 : 14 + int(rng.integers(5))], mask[18:28, 16:30] = 1, 2
        image = np.clip(60 + 60 * mask + rng.normal(0, 8, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "labels" / f"{name}.png")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    split = {"train": IDS[4:], "val": IDS[:2], "test": IDS[2:4], "stranger\x1b[2J\n": []}
    (root / "splits.json").write_text(json.dumps(split))
    return root


def run(capfd, *words):
    logging.getLogger("ulna").handlers.clear()
    code = cli.run([str(word) for word in words])
    out, err = capfd.readouterr()
    assert harmless(out), out
    assert harmless(err), err
    assert not any(line.startswith("error: \\u202e") for line in err.splitlines())
    return code, out, err


def files_are_harmless(folder):
    for path in folder.rglob("*"):
        if path.suffix in (".csv", ".html", ".txt", ".md", ".tex", ".json", ".yaml"):
            assert harmless(path.read_text(encoding="utf-8")), path


def test_the_whole_path_shows_names_and_obeys_none(nasty, tmp_path, capfd):
    out, small = tmp_path / "run\x1b[5m", [word for change in TINY for word in ("--set", change)]
    code, shown, _ = run(capfd, "check", nasty)
    assert code == 0
    assert "[red]" in shown  # as it is written
    assert run(capfd, "plan", nasty, "--model", "unet")[0] == 0
    assert run(capfd, "train", nasty, "--model", "unet", "--out", out, "--epochs", 1, *small)[0] == 0
    assert run(capfd, "predict", out, nasty, "--out", tmp_path / "masks")[0] == 0
    assert run(capfd, "evaluate", tmp_path / "masks", nasty, "--out", tmp_path / "scores")[0] == 0
    assert run(capfd, "explain", out, nasty / "images" / "5.png", "--out", tmp_path / "maps")[0] == 0
    assert run(capfd, "predict", out, nasty / "absent\x1b", "--out", tmp_path / "m2")[0] == 2
    assert run(capfd, "train", nasty, "--model", NASTY)[0] == 2
    files_are_harmless(tmp_path)
    rows = list(csv.reader((tmp_path / "scores" / "metrics.csv").read_text().splitlines()))
    assert {row[0] for row in rows[1:]} == {"'+1+1", "'-2", "'=3", "'@4", "5", "6", "7", "8"}
    assert all(not text.startswith(("=", "+", "@")) for row in rows for text in row)
    assert all(float(row[2]) >= 0 for row in rows[1:])  # numbers stay numbers


@pytest.mark.slow
def test_tables_and_pages_of_a_study_show_names_and_obey_none(nasty, tmp_path, capfd):
    small = [word for change in TINY for word in ("--set", change)]
    words = ("compare", nasty, "--models", "unet,fcn", "--epochs", 1, "--out", tmp_path / "study", *small)
    assert run(capfd, *words)[0] == 0
    files_are_harmless(tmp_path)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "<b>&" not in page
    assert "{{ 7*7 }}" in page
    rows = list(csv.DictReader((tmp_path / "study" / "results.csv").read_text().splitlines()))
    assert {row["case"] for row in rows} == {"'=3", "'@4"}


def test_an_unknown_field_is_shown_and_not_obeyed(tmp_path, discs, capfd):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({NASTY: 1, "model": "unet", "training": {"epochs": NASTY}}))
    code, _, err = run(capfd, "train", discs, "--recipe", recipe)
    assert code == 2
    assert "not a field" in err


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "'a", "'", "", "a", "a=b", "'=a", "''"])
def test_what_is_read_of_a_table_is_what_was_written(text):
    assert from_cell(str(cell(text))) == text
    assert not str(cell(text)).startswith(("=", "+", "-", "@"))


def test_numbers_in_a_table_stay_numbers():
    assert [cell(value) for value in (-1.5, -2, None, True)] == [-1.5, -2, None, True]


def test_errors_can_be_shown_whatever_they_name():
    assert str(UsageError(f"{NASTY}: is wrong")).startswith("na\\x1b[31ms\\x07ty\n  error: \\u202e")
    assert harmless(str(unknown("model", NASTY, [NASTY, "b"])))
    assert printable("é𝛼 \x00\u2028") == "é𝛼 \\x00\\u2028"
    assert printable_lines("a\nb\n  c\n") == "a\n  b\n  c\n"
    assert len(brief(["x" * 10_000] * 1000)) < 1000
    assert brief(10**10_000).startswith("a int of great length")
