"""What an entry stands for: all that a prepared case is made from, and nothing else."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

import ulna
from tests import plans
from tests.discs import draw_discs
from ulna.data.formats.source import Series, Source, Structure
from ulna.data.layout.dataset import Dataset
from ulna.data.prepared import contents as hashing
from ulna.data.prepared import key as room
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.key import files_of, key_of
from ulna.recipe import Labels, Normalization


@pytest.fixture
def case(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    draw_discs(data, 3, seed=0, size=(24, 26), smallest=3, contrast=90, noise=15, foreground=255, train=1, val=1)
    return Dataset.from_folder(data).of_dims(2).cases[0]


def key(case, plan=None, form=()):
    return key_of(case, plan or plans.make(), form, Contents())


def test_a_case_has_one_key_wherever_its_files_lie(case, tmp_path):
    assert key(case) == key(case)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    image, label = (shutil.copy(path, moved / f"{number}{path.suffix}") for number, path in enumerate(files_of(case)))
    there = dataclasses.replace(case, id="b", group="g", images=(Source(image),), label=Source(label))
    assert key(there) == key(case)


def test_other_bytes_have_another_key(case):
    before = {key(case)}
    for path in files_of(case):
        whole = bytearray(path.read_bytes())
        whole[-1] ^= 1
        path.write_bytes(whole)
        before.add(key(case))
    assert len(before) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"spacing": (2.0, 1.0)},
        {"normalization": (Normalization(kind="none"),)},
        {"normalization": (Normalization(kind="ct", low=-5, high=7.5),)},
        {"crop": (8, None)},
        {"size": (8, 8)},
        {"kept_axes": (1,)},
        {"orientation": "RAS"},
        {"labels": Labels(names=("background", "disc"), ignore=(7,))},
        {"labels": Labels(names=("background", "disc"), values=((1, 255),))},
    ],
)
def test_another_way_of_preparing_has_another_key(case, change):
    assert key(case, plans.make(**change)) != key(case)


def test_what_preparing_does_not_read_changes_no_key(case):
    one = plans.make()
    other = one.model_copy(update={"patch": (8, 8), "batch": 7, "reasons": {"patch": "so"}, "mirror_axes": (0,)})
    assert key(case, other) == key(case, one)


def test_slices_are_kept_apart_from_volumes_and_by_what_is_seen(case):
    assert len({key(case, form=form) for form in ((), (2, 0), (2, 1), (1, 1))}) == 4


def test_how_files_are_read_is_a_part_of_the_key(case):
    (image,) = case.images
    series = Series((image.path,))
    others = [
        case,
        dataclasses.replace(case, spatial_dims=3),
        dataclasses.replace(case, images=(image._replace(row=0),)),
        dataclasses.replace(case, images=(image._replace(row=1),)),
        *(
            dataclasses.replace(case, label=Source(case.label.path, series=one))
            for one in (
                Series((case.label.path,)),
                Series((case.label.path,), grid=series.files),
                Series((case.label.path,), structures=(Structure("a", ("b",)),)),
                Series((case.label.path,), structures=(Structure("a", ("b",)),), overlapping=True),
                Series((case.label.path,), fixes=(("gap", "fill"),)),
            )
        ),
    ]
    assert len({key(one) for one in others}) == len(others)


def test_what_may_be_read_from_more_than_is_hashed_has_no_key(case, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    shutil.copy(case.label.path, folder / "one.png")
    of_masks = dataclasses.replace(case, label=Source(folder))
    assert key(of_masks) is not None
    (folder / "more").mkdir()
    assert key(of_masks) is None
    assert key(dataclasses.replace(case, label=None)) is None

    alone, among = tmp_path / "alone.ome.tif", tmp_path / "among.ome.tif"
    tifffile.imwrite(alone, np.zeros((2, 8, 8), np.uint8), ome=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(alone) as file:
        said = file.ome_metadata
    planes = '<TiffData IFD="0"><UUID FileName="{}">urn:uuid:1</UUID></TiffData>'
    assert "<TiffData" in said
    tifffile.imwrite(among, np.zeros((2, 8, 8), np.uint8), description=_naming(said, planes.format("other.ome.tif")))
    own = tmp_path / "own.ome.tif"
    tifffile.imwrite(own, np.zeros((2, 8, 8), np.uint8), description=_naming(said, planes.format("own.ome.tif")))
    keys = [key(dataclasses.replace(case, images=(Source(path),))) for path in (alone, own, among)]
    assert keys[0] is not None and keys[1] is not None and keys[2] is None


def _naming(said, planes):
    begin = said.index("<TiffData")
    end = said.index("</Pixels>")
    return said[:begin] + planes + said[end:]


def test_a_file_that_was_changed_after_it_was_hashed_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(b"before")
    known, hashed = Contents(), []
    plainly = hashing.file_digest
    monkeypatch.setattr(hashing, "file_digest", lambda *files: hashed.append(files) or plainly(*files))
    known.of(path)
    assert known.holds(path) and len(hashed) == 2, "just written: its time says nothing"
    found = path.stat()
    path.write_bytes(b"behind")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert not known.holds(path), "of the same length, and of the same time as far as it can be set"
    path.unlink()
    assert not known.holds(path)


def test_a_file_that_was_left_alone_is_not_hashed_again(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(b"before")
    monkeypatch.setattr(hashing.time, "time", lambda: path.stat().st_ctime + 60)
    known = Contents()
    known.of(path)
    monkeypatch.setattr(hashing, "file_digest", lambda *files: pytest.fail("hashed again"))
    assert known.holds(path) and known.of(path)


def test_the_code_of_labels_and_of_kept_samples_counts():
    """An entry holds what these made: with other code it would be another one."""
    root = Path(ulna.__file__).parent
    for name in ("recipe/labels.py", "training/samples.py", "training/slices.py"):
        assert name in room._CODE
    assert all((root / name).exists() for name in room._CODE)
