"""`zoo:NAME` stands for a file that comes with the package; the files say what their users must know."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from packages.runtime.make_zoo import SEGMENTERS, renew_card
from packages.runtime.tests.conftest import plan_for, recipe_of
from ulna_runtime import UsageError, bundle, load, zoo
from ulna_runtime.cli import run as command

MOST_BYTES = 6_000_000
SOURCE = str(Path(zoo.__file__).parents[1])


@pytest.fixture
def made(flat, tmp_path, monkeypatch):
    """A zoo of one segmenter, whose card says what a card says."""
    folder = tmp_path / "zoo_files"
    folder.mkdir()
    card = {
        "structures": ["a", "b"],
        "images": {"dimensions": 2, "channels": ["red", "green", "blue"]},
        "licence": "CC0 1.0",
        "scores": {"dice": "0.9000 (0.8000 to 0.9500, n = 34)"},
    }
    members = flat.members(plan_for(2), recipe_of(flat.model, flat.architecture))
    bundle.write_bundle(folder / "made.ulna", {**members, "card.json": json.dumps(card).encode()})
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder / "made.ulna"


def test_a_name_stands_for_the_file(made, rng, tmp_path, capsys):
    image = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 255, (21, 34, 3), np.uint8)).save(image)
    expected = load(made)(image).mask
    assert np.array_equal(load("zoo:made")(image).mask, expected)
    assert command(["predict", "zoo:made", str(image), "--out", str(tmp_path / "masks")]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "image.png")), expected)
    assert command(["info", "zoo:made"]) == 0
    assert "licence: CC0 1.0" in capsys.readouterr().out


def test_the_list_has_scores_with_intervals_and_licences(made, capsys):
    assert command(["zoo"]) == 0
    told = capsys.readouterr().out
    for said in ("zoo:made", "a, b", "2D, 3 channels", "0.9000 (0.8000 to 0.9500, n = 34)", "CC0 1.0"):
        assert said in told
    assert command(["zoo", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["bytes"]) == ("zoo:made", made.stat().st_size)


def test_a_reader_that_leaves_ends_the_list_without_a_traceback():
    """As `ulna-runtime zoo | head -1` does; the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-c", "from ulna_runtime.cli import main; main(['zoo'])"]
    done = subprocess.run(
        words, stdout=writing, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE}
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_name_is_refused_with_the_nearest(made, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"did you mean zoo:made\?"):
        load("zoo:mad")
    assert command(["predict", "zoo:made/../x", str(tmp_path), "--out", str(tmp_path / "masks")]) == 2
    assert "no segmenter of this name" in capsys.readouterr().err


def test_ulna_takes_the_same_names(made, rng, tmp_path, capsys):
    import ulna
    from ulna.cli import main as cli

    image = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 255, (21, 34, 3), np.uint8)).save(image)
    assert cli.run(["predict", "zoo:made", str(image), "--out", str(tmp_path / "masks"), "--quiet"]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "image.png")), load(made)(image).mask)
    assert np.array_equal(ulna.load("zoo:made")(image).mask, load(made)(image).mask)
    assert ulna.info("zoo:made").card["licence"] == "CC0 1.0"
    assert [entry["name"] for entry in ulna.zoo().entries] == ["zoo:made"]
    capsys.readouterr()
    assert cli.run(["zoo"]) == 0
    assert "0.9000 (0.8000 to 0.9500, n = 34)" in capsys.readouterr().out
    with pytest.raises(ulna.UsageError, match="did you mean"):
        ulna.load("zoo:mad")


@pytest.mark.parametrize("name", zoo.names())
def test_every_file_that_comes_with_it_is_small_and_says_what_it_must(name):
    (entry,) = [entry for entry in zoo.entries() if entry.name == name]
    assert entry.bytes <= MOST_BYTES
    assert re.fullmatch(r"0\.\d{4} \(0\.\d{4} to 0\.\d{4}, n = \d+\)", entry.dice)
    card, told = entry.card, entry.card["trained_on"]
    assert card["scores"]["evaluated_on"] == "test"
    assert card["export"]["precision"] == "fp16"
    assert all(told[field] for field in ("source", "cite", "data_licence", "split", "steps", "hours"))
    whole = bundle.read_bundle(entry.file)
    assert whole.weights is not None
    everything = json.dumps([whole.pipeline, whole.card]).encode() + b"".join(whole.graphs.values()) + whole.weights
    assert not re.search(rb"/(tmp|work|home|root|usr)/|site-packages", everything), "a place on somebody's machine"
    if "CC BY-SA" in told["data_licence"]:
        assert "CC BY-SA 4.0" in entry.licence
        assert "ShareAlike" in (zoo.FOLDER / f"LICENCE-{name}.txt").read_text()


@pytest.mark.parametrize("name", zoo.names())
def test_the_cards_are_those_of_the_committed_command_and_are_printed(name, tmp_path, capsys):
    from ulna.cli import main as cli

    file = shutil.copy(zoo.FOLDER / f"{name}.ulna", tmp_path)
    renew_card(tmp_path / f"{name}.ulna", SEGMENTERS[name])
    assert bundle.read_bundle(file).digest == bundle.read_bundle(zoo.FOLDER / f"{name}.ulna").digest
    licence = {"nuclei": "Apache-2.0, like the code", "hippocampus": "CC BY-SA 4.0, see LICENCE-hippocampus.txt"}[name]
    for run in (command, cli.run):
        assert run(["info", f"zoo:{name}"]) == 0
        told = capsys.readouterr().out
        assert "these scores are slightly optimistic" in told
        assert f"licence: {licence}" in told


def test_images_to_try_are_few_small_labelled_and_told_where_they_come_from(capsys):
    from ulna.cli import main as cli

    (entry,) = [entry for entry in zoo.entries() if entry.examples]
    files = [path for path in entry.examples.rglob("*") if path.is_file()]
    images = sorted((entry.examples / "images").iterdir())
    assert len(images) <= 6 and sum(path.stat().st_size for path in files) <= 300_000
    source = (entry.examples / "README.md").read_text()
    assert "CC0 1.0" in source and "github" in source.lower()
    for image in images:
        label = np.asarray(Image.open(entry.examples / "labels" / image.name))
        assert np.asarray(Image.open(image)).shape == (*label.shape, 3) and set(np.unique(label)) == {0, 1}
        assert re.search(rf"`{image.stem}` \| [0-9a-f]{{64}} ", source)
    assert len({*re.findall(r"[0-9a-f]{64}", source)}) == len(images)
    for run in (command, cli.run):
        assert run(["zoo"]) == 0
        assert str(entry.examples / "images") in capsys.readouterr().out.replace("\n", "")


@pytest.mark.skipif("nuclei" not in zoo.names(), reason="this package has no zoo:nuclei")
def test_the_nuclei_are_found_in_discs_on_a_dark_ground():
    rows, columns = np.mgrid[:96, :96]
    disc = (rows - 40) ** 2 + (columns - 50) ** 2 < 12**2
    image = np.where(disc, 120, 12)[None].repeat(3, 0).astype(np.uint8)
    mask = load("zoo:nuclei", threads=1)(image).mask
    assert 2 * np.sum(disc & (mask > 0)) / (disc.sum() + np.sum(mask > 0)) > 0.8
