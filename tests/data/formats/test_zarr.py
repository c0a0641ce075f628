"""OME-Zarr as an image: read whole and in boxes, of ulna and of others, and what is wrong with a folder of that name.

Values are compared to the bit: they are read as they were stored, without arithmetic, so this holds on every processor.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.data.formats.test_opening import assert_same
from ulna.data.formats import opening, zarr_boxes
from ulna.data.formats.limits import allowing
from ulna.data.formats.opening import open_image
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source, case_name, suffix_of
from ulna.data.formats.whole_boxes import boxed
from ulna.data.formats.write import write_labels
from ulna.data.formats.zarr_writing import write_zarr
from ulna.data.volume import Volume
from ulna.errors import DataError
from ulna.system.outputs import file_digest

zarr = pytest.importorskip("zarr")

AFFINE = np.array([[0, -2, 0, 5], [1.5, 0, 0, -3], [0, 0, 4, 9], [0, 0, 0, 1.0]])


def written(path, values, spacing=None, affine=None, labels=False):
    """What ulna writes of (C, *S)."""
    steps = spacing or (1.0,) * (values.ndim - 1)
    like = Volume(values, steps, "px" if spacing is None else "mm", affine)
    write_zarr(path, boxed(values), like, path.name, labels=labels)
    return path


def foreign(path, values, axes, *, version=2, chunks=None, scale=None, unit="micrometer", attributes=None):
    """What other programs write: metadata 0.4 in Zarr 2, 0.5 in Zarr 3."""
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=values, chunks=chunks or values.shape)
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": one, "type": kinds.get(one, "space")} for one in axes]
    named = [{**one, "unit": unit} if one["type"] == "space" else one for one in named]
    steps = [{"type": "scale", "scale": scale or [1.0] * len(axes)}]
    told = {"axes": named, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    own = {"multiscales": [{**told, "version": "0.4"}]} if version == 2 else {"ome": {"multiscales": [told]}}
    group.attrs.update({**own, **(attributes or {})})
    return path


def test_boxes_of_what_is_read_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.integers(-500, 500, (2, 30, 17, 70)).astype(np.int16)
    turned = written(tmp_path / "a.ome.zarr", values, (1.5, 2.0, 4.0), AFFINE)
    picture = written(tmp_path / "b.zarr", rng.normal(0, 9, (3, 50, 41)).astype(np.float32))
    real = foreign(
        tmp_path / "c.zarr", rng.normal(0, 9, (2, 9, 20, 30)), "czyx", chunks=(1, 4, 7, 30), scale=[1, 3.0, 0.5, 0.5]
    )
    for least in (zarr_boxes.LARGEST, 1000):  # the second: chunk by chunk, in a file on disk
        monkeypatch.setattr(zarr_boxes, "LARGEST", least)
        monkeypatch.setattr(opening, "LARGEST", least)
        for path in (turned, picture, real):
            assert_same([path], rng)
    np.testing.assert_array_equal(read_image([Source(turned)]).array, values)
    assert read_image([Source(real)]).spacing == (0.003, 0.0005, 0.0005)
    assert (case_name(turned), suffix_of(turned), read_image([Source(turned)]).meta.suffix) == (
        "a", ".ome.zarr", ".ome.zarr",
    )  # fmt: skip


def test_channels_slices_and_what_float32_does_not_hold(tmp_path):
    """Channels may stand anywhere; one slice is a picture, or a volume where the others are; labels are whole numbers."""
    values = np.arange(2 * 5 * 6, dtype=np.float64).reshape(5, 6, 2)
    last = read_image([Source(foreign(tmp_path / "a.zarr", values, "yxc", version=3))])
    np.testing.assert_array_equal(last.array, np.moveaxis(values, -1, 0))
    flat = foreign(tmp_path / "b.zarr", np.ones((1, 1, 1, 5, 6)), "tczyx")
    assert (read_image([Source(flat)]).size, read_image([Source(flat)], 3).size) == ((5, 6), (1, 5, 6))
    assert read_image([Source(flat)]).meta.either
    labels = read_labels(Source(foreign(tmp_path / "l.zarr", np.full((5, 6), 3.0), "yx")))
    assert labels.array.dtype == np.uint8 and (labels.array == 3).all()
    large = read_image([Source(foreign(tmp_path / "c.zarr", np.array([[1e300, 2.0]]), "yx"))])
    assert large.meta.too_large == (1, 1e300)


def test_one_image_of_bioformats2raw(tmp_path):
    values = np.arange(30, dtype=np.uint8).reshape(5, 6)
    root = tmp_path / "a.zarr"
    group = zarr.open_group(str(root), mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    foreign(root / "0", values, "yx")
    np.testing.assert_array_equal(read_image([Source(root)]).array[0], values)
    foreign(root / "1", values, "yx")
    with pytest.raises(DataError, match="holds several images; copy each"):
        read_image([Source(root)])


def broken(folder):
    """Name -> what is said of it."""
    noise = np.random.default_rng(1).integers(0, 255, (40, 50)).astype(np.uint8)
    said = {"film": "holds 4 points in time (axis t), and an image is of one"}
    foreign(folder / "film.zarr", np.zeros((4, 5, 6)), "tyx")
    said["packed"] = "is a file, and OME-Zarr is a folder"
    (folder / "packed.zarr").write_bytes(b"PK")
    said["empty"] = "cannot be read as OME-Zarr"
    (folder / "empty.zarr").mkdir()
    said["table"] = "cannot be read as OME-Zarr"
    zarr.create_array(str(folder / "table.zarr"), data=noise)
    said["other"] = "holds no OME-Zarr image (no multiscales in its attributes)"
    zarr.open_group(str(folder / "other.zarr"), mode="w").create_array("0", data=noise)
    said["cut"] = "cannot be read as OME-Zarr"
    cut = foreign(folder / "cut.zarr", noise, "yx", version=3)
    (cut / "zarr.json").write_text((cut / "zarr.json").read_text()[:40])
    said["levels"] = "cannot be read as OME-Zarr"
    levels = foreign(folder / "levels.zarr", noise, "yx", version=3)
    (levels / "0" / "zarr.json").unlink()
    said["axes"] = "has an array of 2 axes and names 3"
    foreign(folder / "axes.zarr", noise, "zyx")
    said["words"] = "holds values of type"
    foreign(folder / "words.zarr", np.zeros((4, 5), "c8"), "yx")
    said["nothing"] = "holds no pixel, its shape is (0, 4, 5)"
    foreign(folder / "nothing.zarr", np.zeros((0, 4, 5)), "cyx", chunks=(1, 4, 5))
    said["flat"] = "states an affine that is not that of its scales"
    flat = {"affine": [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}
    foreign(
        folder / "flat.zarr",
        np.zeros((4, 5, 6)),
        "zyx",
        scale=[1, 2**0.5, 2**0.5],
        unit="millimeter",
        attributes={"ulna": flat},
    )
    said["scaled"] = "states an affine that is not that of its scales"
    own = {"ulna": {"affine": np.eye(4).tolist()}}
    foreign(folder / "scaled.zarr", np.zeros((4, 5, 6)), "zyx", scale=[1, 1, 2], unit="millimeter", attributes=own)
    said["damaged"] = "is damaged"
    damaged = foreign(folder / "damaged.zarr", noise, "yx", version=3)
    chunk = damaged / "0" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    return said


def test_what_is_wrong_is_one_sentence(tmp_path):
    said = broken(tmp_path)
    for name, what in said.items():
        for read in (lambda source: read_image([source]), read_labels):
            with pytest.raises(DataError) as error:
                read(Source(tmp_path / f"{name}.zarr"))
            (problem,) = error.value.problems
            assert what in problem.what and "\n" not in problem.what and name in problem.file, name
    with pytest.raises(DataError, match="does not exist"):
        read_image([Source(tmp_path / "none.zarr")])


def test_chunks_that_the_limit_has_no_room_for_are_refused(tmp_path, monkeypatch):
    path = foreign(tmp_path / "a.zarr", np.zeros((50, 60), np.int16), "yx")
    monkeypatch.setattr(opening, "LARGEST", 1000)
    monkeypatch.setattr(zarr_boxes, "LARGEST", 1000)
    with (
        allowing(None, 1e-5, 5e-6),
        pytest.raises(DataError, match=r"has chunks, with all channels, of 6e-06 GB and needs 0\.01 GB at least"),
    ):
        open_image([Source(path)])
    with allowing(None, 1e-5), pytest.raises(DataError, match="more than half of the 1e-05 GB that --max-ram allows"):
        read_image([Source(path)])


def test_what_is_read_at_once_is_compared_with_the_limit_and_not_the_image_alone(tmp_path, monkeypatch):
    """A small image in one large chunk, and many channels of chunks that are within the limit one by one."""
    monkeypatch.setattr(opening, "LARGEST", 1000)
    monkeypatch.setattr(zarr_boxes, "LARGEST", 1000)
    large = foreign(tmp_path / "large.zarr", np.zeros((4, 4), np.uint8), "yx", chunks=(4000, 4000))
    many = foreign(tmp_path / "many.zarr", np.zeros((40, 50, 60), np.uint8), "cyx", chunks=(1, 50, 60))
    for path, said in ((large, "of 0.016 GB"), (many, "of 0.00012 GB")):
        with allowing(None, 2e-4, 1e-5), pytest.raises(DataError) as error:
            open_image([Source(path)])
        (problem,) = error.value.problems
        assert said in problem.what and "smaller chunks (ulna convert IMAGE.zarr NEW.zarr)" in problem.remedy
    with (
        allowing(None, 0.01),
        pytest.raises(DataError, match=r"has chunks, with all channels, of 0\.016 GB, more than half"),
    ):
        read_image([Source(large)])
    with allowing(None, 1e-4, 1e-5), pytest.raises(DataError, match="cut it into smaller images: it is read whole"):
        read_image([Source(many)])
    with allowing(None, 3e-4, 1e-5), open_image([Source(many)]) as opened:
        assert opened.volume.channels == 40


def test_chunks_that_are_not_there_are_noted(tmp_path):
    values = np.arange(1, 31, dtype=np.uint8).reshape(5, 6)
    path = foreign(tmp_path / "a.zarr", values, "yx", version=3, chunks=(2, 3))
    assert not read_image([Source(path)]).meta.notes
    (path / "0" / "c" / "1" / "0").unlink()
    for read in (lambda one: read_image([one]), read_labels, lambda one: open_image([one]).volume):
        assert [note[:36] for note in read(Source(path)).meta.notes] == ["lacks chunks, which are read as its f"[:36]]
    empty = written(
        tmp_path / "b.zarr", np.zeros((1, 600, 600), np.uint8), labels=True
    )  # as other writers would leave it out
    assert not read_labels(Source(empty)).meta.notes


def test_a_digest_is_of_names_and_bytes_and_not_of_label_maps(tmp_path):
    rng = np.random.default_rng(2)
    path = foreign(tmp_path / "a.zarr", rng.integers(0, 9, (4, 6)).astype(np.uint8), "yx", version=3, chunks=(2, 6))
    first = file_digest(path)
    (path / ".DS_Store").write_bytes(b"x")
    written(path / "labels" / "b.zarr", np.ones((1, 4, 6), np.uint8), labels=True)
    assert file_digest(path) == first
    attributes = json.loads((path / "zarr.json").read_text())
    one, other = (path / "0" / "c" / name / "0" for name in "01")
    assert one.read_bytes() != other.read_bytes()
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert file_digest(path) != first
    attributes["attributes"]["more"] = 1
    swapped = file_digest(path)
    (path / "zarr.json").write_text(json.dumps(attributes))
    assert file_digest(path) != swapped


def test_a_mask_has_the_axes_scales_and_origin_of_its_image(tmp_path):
    """As the file states them: without a unit, in another one, in another order."""
    values = np.zeros((4, 5, 6), np.uint8)
    for name, axes, unit, scale, origin in (
        ("bare", "yx", None, [2.0, 0.5], [10.0, 20.0]),
        ("small", "zyx", "micrometer", [2.0, 0.5, 0.5], [10.0, 20.0, 30.0]),
        ("turned", "xyz", "millimeter", [0.5, 0.5, 3.0], [-1.0, 0.0, 7.0]),
        ("coloured", "cyx", "nanometer", [1.0, 8.0, 9.0], [0.0, 1.0, 2.0]),
    ):
        image = foreign(
            tmp_path / f"{name}.zarr", values[0] if len(axes) == 2 else values, axes, scale=scale, unit=unit
        )
        told = json.loads((image / ".zattrs").read_text())
        told["multiscales"][0]["datasets"][0]["coordinateTransformations"] += [
            {"type": "translation", "translation": origin}
        ]
        if unit is None:
            told["multiscales"][0]["axes"] = [{"name": one, "type": "space"} for one in axes]
        (image / ".zattrs").write_text(json.dumps(told))
        like = read_image([Source(image)])
        made = write_labels(tmp_path / "masks" / name, np.ones(like.size, np.uint8), like)
        (found,) = zarr.open_group(str(made), mode="r").attrs["ome"]["multiscales"]
        (expected,) = told["multiscales"]
        space = [axis for axis, kind in enumerate(axes) if kind != "c"]
        assert found["axes"] == [expected["axes"][axis] for axis in space]
        scales = found["datasets"][0]["coordinateTransformations"]
        assert scales[0]["scale"] == [scale[axis] for axis in space], name
        assert scales[1]["translation"] == [origin[axis] for axis in space], name
        assert read_image([Source(made)]).spacing == like.spacing
    spaced = replace(read_image([Source(tmp_path / "bare.zarr")]), spacing=(0.1, 0.2), unit="mm")  # by --spacing
    write_zarr(tmp_path / "spaced.zarr", boxed(spaced.array), spaced, "spaced")
    assert read_image([Source(tmp_path / "spaced.zarr")]).spacing == (0.1, 0.2)
