"""OME-Zarr folders as cases of a data set: found, checked, trained on, repaired, kept prepared.

Images are compared to the bit: a copy is read as it was stored, without arithmetic, so this holds on every processor.
"""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.data.formats.test_zarr import broken, foreign, written
from tests.plans import make
from ulna.data.formats.zarr_boxes import SEVERAL
from ulna.data.formats.zarr_writing import add_to_labels
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.masks import find_masks, mask_files
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.key import key_of
from ulna.data.quality.copying import copy
from ulna.errors import DataError, UsageError

zarr = pytest.importorskip("zarr")
TINY = ("architecture.channels=[4, 8]", "architecture.strides=[[2, 2]]", "planning.batch=4")


def folders(root, names="abcdef", endings=(".zarr", ".ome.zarr")):
    """A data set of one bright square each, 24 x 32; images of two endings, label maps of one."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        labels = np.zeros((1, 24, 32), np.uint8)
        at = 2 + number % 9
        labels[0, at : at + 9, at : at + 12] = 1
        values = (rng.integers(0, 90, labels.shape) + 120 * labels).astype(np.uint8)
        written(root / "images" / f"{name}{endings[number % len(endings)]}", values)
        written(root / "labels" / f"{name}.zarr", labels, labels=True)
    return root


def test_folders_are_cases_by_their_names(tmp_path):
    root = folders(tmp_path)
    (root / "images" / "other").mkdir()
    dataset = Dataset.from_folder(root)
    assert [case.id for case in dataset.cases] == list("abcdef") and dataset.layout == "pairs"
    assert list(dataset.notes) == ["images/ holds 1 folder that is not read"]
    assert {path.name for path in mask_files(root / "labels")} == {f"{name}.zarr" for name in "abcdef"}
    assert find_masks(root / "labels").sources.keys() == set("abcdef")
    flat = Dataset.from_folder(root / "images", need_labels=False)
    assert len(flat) == 6 and flat.layout == "images"
    assert flat.notes == ("images/ holds 1 folder that is not read", "other/ is not read")
    one = Dataset.from_folder(root / "images" / "b.ome.zarr", need_labels=False)
    assert [case.id for case in one.cases] == ["b"] and not one.notes
    with pytest.raises(DataError, match="is one image, not a data set"):
        Dataset.from_folder(root / "images" / "b.ome.zarr")
    channels = tmp_path / "channels"
    for number in range(2):
        shutil.copytree(root / "images" / "a.zarr", channels / "images" / f"p_000{number}.zarr")
    shutil.copytree(root / "labels" / "a.zarr", channels / "labels" / "p.zarr")
    (case,) = Dataset.from_folder(channels).cases
    assert case.read_image().array.shape == (2, 24, 32)


def test_check_lists_what_is_broken_with_the_others(tmp_path):
    root = folders(tmp_path, "abc")
    said = broken(root / "images")
    for name in said:
        shutil.copytree(root / "labels" / "a.zarr", root / "labels" / f"{name}.zarr")
    report = ulna.check(root)
    told = {problem.file: problem.what for problem in report.problems}
    for name, what in said.items():
        assert any(f"{name}.zarr" in file and what in text for file, text in told.items()), name
    assert not any(f"/{name}.zarr" in file for file in told for name in "abc")


def test_a_copy_is_repaired(tmp_path):
    root = folders(tmp_path / "data", "abc", (".zarr",))
    holes = np.random.default_rng(0).normal(0, 9, (1, 24, 32)).astype(np.float32)
    holes[0, 3, 4] = np.nan
    shutil.rmtree(root / "images" / "c.zarr")
    written(root / "images" / "c.zarr", holes)
    sealed = root / "images" / "a.zarr"
    for name in "ac":  # one is copied, the other one written anew
        inside = root / "images" / f"{name}.zarr" / "labels" / "cell.zarr"
        written(inside, np.ones((1, 24, 32), np.uint8), labels=True)
        add_to_labels(inside)
        (root / "images" / f"{name}.zarr" / "OME").mkdir()
        (root / "images" / f"{name}.zarr" / "OME" / "about.xml").write_text("<OME/>")
    group = zarr.open_group(str(root / "images" / "c.zarr"), mode="r+")
    group.attrs.update({"ome": {**group.attrs["ome"], "omero": {"channels": [{"color": "00FF00"}]}}, "site": "A"})
    (sealed / "0" / "back").symlink_to(sealed, target_is_directory=True)
    sealed.chmod(0o555)
    ulna.check(root, fix=tmp_path / "fixed")
    sealed.chmod(0o755)
    copy = tmp_path / "fixed" / "images" / "a.zarr"
    assert copy.stat().st_mode & 0o200 and not (copy / "0" / "back").exists()
    assert not ulna.check(tmp_path / "fixed").problems
    cases = Dataset.from_folder(tmp_path / "fixed").cases
    assert np.isfinite(cases[2].read_image().array).all()
    for name in "ac":
        image = zarr.open_group(str(copy.with_name(f"{name}.zarr")), mode="r")
        assert image["labels"].attrs["ome"]["labels"] == ["cell.zarr"] and (image["labels/cell.zarr/0"][:] == 1).all()
        assert (copy.with_name(f"{name}.zarr") / "OME" / "about.xml").read_text() == "<OME/>"
    assert image.attrs["ome"]["omero"] == {"channels": [{"color": "00FF00"}]} and image.attrs["site"] == "A"
    assert image.attrs["ome"]["multiscales"] == group.attrs["ome"]["multiscales"]
    assert {path.name for path in copy.parent.iterdir()} == {"a.zarr", "b.zarr", "c.zarr"}
    np.testing.assert_array_equal(cases[0].read_image().array, Dataset.from_folder(root).cases[0].read_image().array)


def with_nan(path, version=3):
    """An image of which one value is to be repaired, of a case whose label map is there."""
    shutil.rmtree(path)
    values = np.random.default_rng(0).normal(0, 9, (24, 32)).astype(np.float32)
    values[3, 4] = np.nan
    return foreign(path, values, "yx", version=version)


def test_further_images_and_what_lies_beside_an_image_stay(tmp_path):
    root = folders(tmp_path / "data", "abcde", (".zarr",))
    image = {name: root / "images" / f"{name}.zarr" for name in "abcde"}
    inner = with_nan(image["a"]).rename(tmp_path / "inner")  # bioformats2raw
    layout = zarr.open_group(str(image["a"]), mode="w", zarr_format=3)
    layout.attrs.update({"ome": {"version": "0.5", SEVERAL: 3}, "site": "A"})
    inner.rename(image["a"] / "0")
    (image["a"] / "OME").mkdir()
    (image["a"] / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    for name, further in {
        "b": {"name": "other", "datasets": [{"path": "further/0"}]},
        "c": {"name": "malformed"},
        "d": {"name": "same level", "datasets": [{"path": "0"}]},
    }.items():
        group = zarr.open_group(str(with_nan(image[name])), mode="r+")
        group.create_array("further/0", data=np.full((3, 3), 7))
        ome = group.attrs["ome"]
        group.attrs.update({"ome": {**ome, "multiscales": [*ome["multiscales"], further]}})
    report = ulna.check(root, fix=tmp_path / "fixed")
    fixed = {case.id: case for case in Dataset.from_folder(report.root).cases}
    assert list(fixed) == list("abce") and all(np.isfinite(case.read_image().array).all() for case in fixed.values())
    assert any("d.zarr" in one.file and "is part of two" in one.what for one in report.repair.left_out)
    copies = {name: report.root / "images" / f"{name}.zarr" for name in fixed}
    assert (copies["a"] / "OME" / "METADATA.ome.xml").read_text() == "<OME/>"
    assert zarr.open_group(str(copies["a"]), mode="r").attrs["site"] == "A"
    for name, second in (("b", "other"), ("c", "malformed")):
        group = zarr.open_group(str(copies[name]), mode="r")
        assert [one.get("name") for one in group.attrs["ome"]["multiscales"]][1:] == [second]
        assert (group["further/0"][:] == 7).all()


@pytest.mark.parametrize("version", [2, 3])
def test_what_a_label_map_says_of_its_values_is_said_of_the_new_ones(tmp_path, version):
    root = folders(tmp_path / "data", "ab", (".zarr",))
    for name in "ab":
        values = np.zeros((24, 32), np.uint8)
        values[2:9, 2:9], values[12:20, 12:20] = 128, 255
        path = root / "labels" / f"{name}.zarr"
        shutil.rmtree(path)
        foreign(path, values, "yx", version=version)
        entries = [{"label-value": value, "rgba": [value, 0, 0, 255]} for value in (0, 128, 255, 77)]
        told = {
            "colors": entries,
            "properties": [{"label-value": 255, "class": "vessel"}, {}],
            "source": {"image": "x"},
        }
        group = zarr.open_group(str(path), mode="r+")
        own = {"image-label": told} if version == 2 else {"ome": {**group.attrs["ome"], "image-label": told}}
        group.attrs.update(own)
    report = ulna.check(root, fix=tmp_path / "fixed")
    attributes = dict(zarr.open_group(str(report.root / "labels" / "a.zarr"), mode="r").attrs)
    told = attributes["ome"]["image-label"]
    assert told["source"] == {"image": "x"} and "image-label" not in attributes
    assert [(one["label-value"], one["rgba"][0]) for one in told["colors"]] == [(0, 0), (1, 128), (2, 255)]
    assert told["properties"] == [{"label-value": 2, "class": "vessel"}]


def test_a_copy_lacks_no_chunk_that_is_there(tmp_path):
    """Where one is a link that leads nowhere, or no file, its case is left out: it would read as the fill value."""
    root = folders(tmp_path / "data", "abcd", (".zarr",))
    at = {
        "images/a": lambda chunk: chunk.symlink_to("away"),
        "labels/b": lambda chunk: chunk.symlink_to("away"),
        "images/c": lambda chunk: chunk.symlink_to(chunk.name),
    }
    words = ["No such file", "No such file", "symbolic links"]
    for name, make_one in at.items():
        chunk = root / f"{name}.zarr" / "0" / "c" / "0" / "0"
        chunk.unlink()
        make_one(chunk)
    report = ulna.check(root, fix=tmp_path / "fixed")
    assert [case.id for case in Dataset.from_folder(report.root).cases] == ["d"]
    told = {problem.file: problem.what for problem in report.repair.left_out}
    for name, what in zip(at, words, strict=True):
        assert any(f"{name}.zarr" in file and what in text for file, text in told.items()), (name, told)
    chunk = root / "images" / "d.zarr" / "0" / "c" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(DataError, match="is a named pipe, not a file"):
        copy(root / "images" / "d.zarr", tmp_path / "d.zarr")


def test_without_the_extra_a_sentence_names_it(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    root = folders(tmp_path, "ab")
    monkeypatch.setattr("ulna.system.extras.import_module", absent)
    with pytest.raises(
        UsageError, match=r"holds OME-Zarr, which needs zarr, which is not installed; pip install 'ulna"
    ):
        Dataset.from_folder(root)


def test_a_prepared_case_is_known_by_the_bytes_of_its_chunks(tmp_path):
    root, plan = folders(tmp_path, "ab"), make()
    case = Dataset.from_folder(root).cases[0]
    first = key_of(case, plan, (), Contents())
    assert first is not None and first == key_of(case, plan, (), Contents())
    contents = Contents()
    contents.of(case.images[0].path)
    values = case.read_image().array
    shutil.rmtree(case.images[0].path)
    written(case.images[0].path, values + 1)
    assert not contents.holds(case.images[0].path)
    assert key_of(case, plan, (), Contents()) not in (None, first)


@pytest.mark.slow
def test_from_check_to_scores(tmp_path):
    """The same path, and the same numbers, as with PNG."""
    root = folders(tmp_path / "zarr", "abcdefgh")
    (root / "splits.json").write_text(json.dumps({"train": list("abcde"), "val": list("f"), "test": list("gh")}))
    png = tmp_path / "png"
    for case in Dataset.from_folder(root).cases:
        for kind, volume in (("images", case.read_image()), ("labels", case.read_labels())):
            (png / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(volume.array[0]).save(png / kind / f"{case.id}.png")
    shutil.copy(root / "splits.json", png)
    scores = []
    for data in (root, png):
        assert not ulna.check(data).problems
        run = tmp_path / f"run-{data.name}"
        ulna.train(data, model="unet", out=run, epochs=2, set=TINY)
        ulna.predict(run, data, out=tmp_path / f"masks-{data.name}", split="test")
        ulna.evaluate(tmp_path / f"masks-{data.name}", data, out=tmp_path / f"scores-{data.name}")
        scores.append(json.loads((tmp_path / f"scores-{data.name}" / "summary.json").read_text())["mean"]["dice"])
    assert scores[0] == scores[1]
    foreign(root / "images" / "a.zarr", np.zeros((24, 32), np.uint8), "yx")  # the resumed run notices
    with pytest.raises(UsageError, match="is not the data that the run"):
        ulna.train(root, out=tmp_path / "run-zarr", epochs=3, resume=True)
