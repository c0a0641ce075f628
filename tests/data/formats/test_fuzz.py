"""Damaged files: refused with a reason, or read with the very values that another decoder gives; never anything else."""

import json

import numpy as np
import pytest
from PIL import Image

from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.quality.check import check
from ulna.errors import DataError

pytest.importorskip("SimpleITK")

from tests.data.formats.fuzz import comparable, damaged, decoder, json_files, same_values, seeds


def attempt(folder, name, data, sound):
    """Whether a file was read; asserts that what was read is right."""
    path = folder / name
    path.write_bytes(data)
    try:
        own = read_image([Source(path, 0 if name.endswith(".npz") else None)]).array
    except DataError as error:
        assert all(problem.file.startswith(str(path)) and problem.remedy for problem in error.problems)
        return False
    if not comparable(name, sound, data):
        return True
    try:
        other = decoder(name)(path)
    except Exception:  # the other decoder is stricter, or breaks: nothing to compare with
        return True
    with np.errstate(all="ignore"):
        assert same_values(own, np.asarray(other)), f"{name}: {own.shape} {own.dtype}, {other.shape} {other.dtype}"
    return True


def run(folder, count):
    files = seeds(folder)
    assert len(files) >= 20 and all(attempt(folder, name, data, data) for name, data in files.items())
    read = []
    for number in range(-(-count // len(files))):
        read += [attempt(folder, name, damaged(name, sound, number), sound) for name, sound in files.items()]
    return len(read), sum(read)


@pytest.mark.filterwarnings("ignore")  # of the libraries, about the damage
def test_damaged_files_are_refused_or_read_aright(tmp_path):
    tried, read = run(tmp_path, 440)
    assert tried >= 440 and 0 < read < tried / 2  # changes that leave a right file, or cannot be known, are the fewer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_damaged_files(tmp_path):
    tried, read = run(tmp_path, 2000)
    assert tried >= 2000 and 0 < read < tried / 2


@pytest.mark.parametrize("seed", range(2))
def test_nonsense_beside_the_images_is_told(tmp_path, seed):
    """Folders of JSON that makes no sense: whatever it says, there is a report and, if asked, a sound copy."""
    rng = np.random.default_rng(seed)
    for number in range(12):
        root = tmp_path / str(number)
        for case in range(3):
            for folder, array in (("images", rng.integers(0, 255, (9, 9))), ("labels", np.eye(9))):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(root / folder / f"c{case}.png")
        for name, content in json_files(rng).items():
            (root / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        report = check(root)
        assert str(report) and json.dumps(report.to_json())
        if report.scans:
            fixed = check(root, fix=tmp_path / f"{number} fixed")
            unsplit = ("belong to one group", "too few to train", "cannot be divided")
            assert all(any(words in one.what for words in unsplit) for one in fixed.problems), str(fixed)
