"""Folders that are one image: what is part of them, and what takes their place."""

import numpy as np
import pytest

from tests.data.formats.test_zarr import foreign, written
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_image, write_labels
from ulna.errors import UsageError
from ulna.system.outputs import file_digest
from ulna.system.trees import is_label_map

zarr = pytest.importorskip("zarr")
VALUES = np.arange(30, dtype=np.uint8).reshape(5, 6)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other(kind, path):
    """Somebody's folder of that name."""
    if kind == "no image":
        path.mkdir()
    elif kind == "image":
        foreign(path, VALUES, "yx")
    elif kind == "image of ulna":
        written(path, VALUES[None])
    elif kind == "label map with notes":
        written(path, VALUES[None], labels=True)
    elif kind == "label map with label maps":
        written(path, VALUES[None], labels=True)
        (path / "labels").mkdir()
    if kind != "label map with label maps":
        (path / "notes.txt").write_text("a week's work")


@pytest.mark.parametrize(
    "kind", ["no image", "image", "image of ulna", "label map with notes", "label map with label maps"]
)
def test_a_mask_takes_the_place_of_a_label_map_and_of_nothing_else(tmp_path, kind):
    like = read_image([Source(foreign(tmp_path / "in" / "x.zarr", VALUES, "yx"))])
    target = tmp_path / "x.zarr"
    other(kind, target)
    before = content(target)
    for write in (
        lambda: write_labels(tmp_path / "x", VALUES % 2, like),
        lambda: write_labels(tmp_path / "x", VALUES % 2, like, None, "zarr"),
        lambda: write_image(tmp_path / "x", like),
    ):
        with pytest.raises(UsageError, match=r"x\.zarr: is there, and more or other than the OME-Zarr label map"):
            write()
    assert target.is_dir() and content(target) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_label_map_is_replaced_and_a_link_to_one_is_not(tmp_path):
    like = read_image([Source(foreign(tmp_path / "in" / "x.zarr", VALUES, "yx"))])
    made = write_labels(tmp_path / "x", VALUES % 2, like)
    (made / ".DS_Store").write_bytes(b"x")
    assert is_label_map(made) and write_labels(tmp_path / "x", VALUES % 3, like) == made
    np.testing.assert_array_equal(read_labels(Source(made)).array[0], VALUES % 3)
    made.rename(tmp_path / "y.zarr")
    made.symlink_to(tmp_path / "y.zarr")
    with pytest.raises(UsageError, match="is there, and more or other"):
        write_labels(tmp_path / "x", VALUES % 2, like)
    for write in (
        lambda: write_labels(tmp_path / "in" / "x", VALUES % 2, like),
        lambda: write_image(tmp_path / "in" / "x", like),
    ):
        with pytest.raises(UsageError, match="is the image itself"):
            write()


@pytest.mark.parametrize("name", [".notes/today.txt", ".gitignore", "0/.backup"])
def test_what_somebody_hid_in_a_folder_counts_and_what_macos_leaves_does_not(tmp_path, name):
    path = written(tmp_path / "a.zarr", VALUES[None], labels=True)
    before = file_digest(path)
    for left in (".DS_Store", "._zarr.json", "0/.DS_Store"):
        (path / left).write_bytes(b"x")
    assert file_digest(path) == before
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("a week's work")
    assert file_digest(path) != before
