"""`predict` on OME-Zarr, and masks as OME-Zarr and tiled TIFF: those of NIfTI voxel for voxel, with a limit and without.

Masks are compared voxel for voxel: one process computes the same windows by the same kernels, whichever they are, and only
the file format differs. With a limit, the mean and deviation of an image are summed in another order in float64, so a voxel
could differ where two classes tie to the last bit of float32; random weights give no such tie (AVX2 was imitated, too).
"""

import json
import shutil

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

import ulna
from tests.data.formats.test_zarr import broken, foreign
from tests.inference.test_bounded import CLASSES, LPS, narrow, volume_of
from tests.inference.test_predict import run_folder
from ulna.cli import main as cli
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.errors import PartialFailure, UsageError
from ulna.recipe import Labels

zarr = pytest.importorskip("zarr")
SHEARED = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def run_3d(folder, seed=0, **plan):
    return run_folder(
        folder, seed, spatial_dims=3, strides=((2, 2, 2),), whole_image_limit=10,
        **{"labels": CLASSES, "spacing": (1.4, 1.6, 2.0), "unit": "mm", "orientation": "RAS", "patch": (16, 24, 16), **plan},
    )  # fmt: skip


@pytest.fixture
def pair(tmp_path):
    """A volume as NIfTI and as OME-Zarr."""
    volume_of(tmp_path / "nifti", "x.nii.gz", (26, 31, 14), LPS)
    ulna.convert(tmp_path / "nifti" / "x.nii.gz", tmp_path / "zarr" / "x.ome.zarr")
    return tmp_path


def mask(path):
    return read_labels(Source(path))


def test_a_volume_gives_the_mask_of_its_nifti(pair, monkeypatch):
    narrow(monkeypatch, 2)
    run = run_3d(pair / "run")
    ulna.predict(run, pair / "nifti", out=pair / "a")
    expected = mask(pair / "a" / "x.nii.gz")
    assert len(np.unique(expected.array)) > 1
    for name, limit in (("b", None), ("c", 8.0)):
        made = ulna.predict(run, pair / "zarr", out=pair / name, max_ram=limit)
        assert [row["file"] for row in made.cases] == ["x.ome.zarr"] and not made.failed
        found = mask(pair / name / "x.ome.zarr")
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)
        assert ulna.predict(run, pair / "zarr", out=pair / name, max_ram=limit).skipped == ("x",)
    told = zarr.open_group(str(pair / "b" / "x.ome.zarr"), mode="r").attrs["ome"]
    assert told["image-label"] == {"version": "0.5"} and told["multiscales"][0]["name"] == "x.ome.zarr"
    np.testing.assert_allclose(
        told["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"], (2.1, 1.3, 1.0), rtol=1e-6
    )


def test_formats_side_by_side_with_a_limit_and_without(pair, monkeypatch):
    narrow(monkeypatch, 3)
    run = run_3d(pair / "run")
    for name, limit in (("a", None), ("b", 8.0)):
        made = ulna.predict(run, pair / "nifti", out=pair / name, format=["nifti", "zarr", "tiff"], max_ram=limit)
        assert set(made.cases[0]["files"]) == {"x.nii.gz", "x.zarr", "x.tif"}
        expected = mask(pair / name / "x.nii.gz")
        np.testing.assert_array_equal(mask(pair / name / "x.zarr").array, expected.array)
        pages = tifffile.imread(pair / name / "x.tif")  # foot to head, front to back, the patient's right to left
        ras = nibabel.as_closest_canonical(nibabel.load(pair / name / "x.nii.gz")).get_fdata()
        np.testing.assert_array_equal(pages, ras[::-1, ::-1].transpose(2, 1, 0))
        np.testing.assert_allclose(mask(pair / name / "x.tif").spacing, (2.1, 1.3, 1.0), rtol=1e-6)
        with tifffile.TiffFile(pair / name / "x.tif") as file:
            assert file.pages[0].is_tiled and file.pages[0].compression == 8


def test_overlapping_classes_and_numbered_objects(pair):
    labels = {"names": ("a", "b"), "multilabel": True}
    run = run_3d(pair / "many", labels=labels)
    ulna.predict(run, pair / "nifti", out=pair / "a", format=["nifti", "zarr", "tiff"])
    expected = mask(pair / "a" / "x.nii.gz").array
    assert len(expected) == 2
    np.testing.assert_array_equal(mask(pair / "a" / "x.zarr").array, expected)
    assert mask(pair / "a" / "x.tif").array.shape == (2, 14, 31, 26)
    run = run_3d(pair / "one", labels={"names": ("background", "cell")})
    ulna.predict(run, pair / "zarr", out=pair / "b", instances=True)
    assert mask(pair / "b" / "x.ome.zarr").array.max() > 1


def test_pictures_keep_their_values_as_tiff(tmp_path):
    run = run_folder(tmp_path / "run", 0, mask_values=(0, 255))
    (tmp_path / "images").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (45, 61), np.uint8)
    Image.fromarray(values).save(tmp_path / "images" / "p.png")
    foreign(tmp_path / "images" / "q.zarr", values, "yx", unit="pixel", chunks=(16, 16))
    ulna.predict(run, tmp_path / "images", out=tmp_path / "own")
    ulna.predict(run, tmp_path / "images", out=tmp_path / "tiff", format=["tiff"])
    png = mask(tmp_path / "own" / "p.png").array
    assert set(np.unique(png)) == {0, 255}
    np.testing.assert_array_equal(mask(tmp_path / "tiff" / "p.tif").array, png)
    np.testing.assert_array_equal(mask(tmp_path / "own" / "q.zarr").array, png // 255)
    np.testing.assert_array_equal(mask(tmp_path / "tiff" / "q.tif").array, png)  # a picture, too, and read as one


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 2, 1)])
def test_a_tiff_of_what_is_no_picture_is_read_by_the_values_it_was_written_with(tmp_path, values):
    run = run_folder(tmp_path / "run", 0, labels=Labels(names=("background", "x", "y")), mask_values=values)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    foreign(tmp_path / "images" / "a.zarr", rng.integers(0, 255, (45, 61), np.uint8), "yx", unit="pixel")
    np.save(tmp_path / "images" / "b.npy", rng.integers(0, 255, (45, 61), np.uint8))
    nibabel.save(
        nibabel.Nifti1Image(rng.integers(0, 255, (45, 61), np.uint8), np.eye(4)), tmp_path / "images" / "c.nii"
    )
    ulna.predict(run, tmp_path / "images", out=tmp_path / "truth")
    (tmp_path / "truth" / "predict.json").unlink()  # class indices, now of somebody else
    (tmp_path / "truth" / "c.nii").unlink()  # in mm, and not to be scored with pixels
    for name, limit in (("tiff", None), ("slabs", 8.0)):
        ulna.predict(run, tmp_path / "images", out=tmp_path / name, format=["tiff"], max_ram=limit)
        found = [np.unique(mask(tmp_path / name / f"{case}.tif").array) for case in "abc"]
        assert {0, values[2]} <= set(np.concatenate(found)) <= set(values)
        scores = ulna.evaluate(tmp_path / name, tmp_path / "truth")
        assert (scores.summary["cases"], scores.summary["mean"]["dice"]["mean"]) == (2, 1.0)


def test_a_tiff_that_holds_class_indices_has_a_note_that_says_so(tmp_path):
    run = run_folder(tmp_path / "run", 0)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((45, 61), np.uint8)).save(tmp_path / "images" / "p.png")
    for formats, noted in (([], True), (["tiff"], True), (["zarr", "tiff"], True), (["zarr"], False)):
        out = tmp_path / "-".join(["out", *formats])
        ulna.predict(run, tmp_path / "images", out=out, format=formats)
        notes = json.loads((out / "predict.json").read_text()).get("notes", ())
        assert any("class indices, which may look black" in note for note in notes) == noted


def test_what_is_ulnas_own_is_replaced_and_nothing_else(pair):
    run, other = run_3d(pair / "run"), run_3d(pair / "other", 1)
    ulna.predict(run, pair / "zarr", out=pair / "a")
    first = mask(pair / "a" / "x.ome.zarr").array
    with pytest.raises(UsageError, match=r"x\.ome\.zarr: of another run; --overwrite predicts again"):
        ulna.predict(other, pair / "zarr", out=pair / "a")
    ulna.predict(other, pair / "zarr", out=pair / "a", overwrite=True)
    assert (mask(pair / "a" / "x.ome.zarr").array != first).any()
    assert {path.name for path in (pair / "a").iterdir()} == {"predict.json", "x.ome.zarr"}
    (pair / "a" / "x.ome.zarr" / "labels").mkdir()  # somebody's work lies in it
    with pytest.raises(UsageError, match="not written by ulna, or changed since"):
        ulna.predict(run, pair / "zarr", out=pair / "a", overwrite=True)
    (pair / "a" / "x.ome.zarr" / "labels").rmdir()
    (pair / "a" / "x.ome.zarr" / "0" / "zarr.json").write_text("{}")
    with pytest.raises(UsageError, match="not written by ulna, or changed since"):
        ulna.predict(other, pair / "zarr", out=pair / "a", overwrite=True)
    shutil.rmtree(pair / "a" / "x.ome.zarr")
    (pair / "a" / "x.ome.zarr").symlink_to(pair / "zarr" / "x.ome.zarr")
    with pytest.raises(UsageError, match="not written by ulna"):
        ulna.predict(other, pair / "zarr", out=pair / "a", overwrite=True)
    image = pair / "zarr" / "x.ome.zarr"
    for out, said in ((image / "labels", "lies in an image"), (pair / "zarr", "holds the images")):
        with pytest.raises(UsageError, match=said):
            ulna.predict(run, image, out=out)


def test_broken_ones_fail_with_a_sentence_each(tmp_path, capsys):
    run = run_folder(tmp_path / "run", 0)
    (tmp_path / "images").mkdir()
    said = broken(tmp_path / "images")
    (tmp_path / "images" / "packed.zarr").unlink()
    values = np.random.default_rng(0).integers(0, 255, (45, 61), np.uint8)
    foreign(tmp_path / "images" / "sound.zarr", values, "yx", unit="pixel")
    for extra in ({}, {"max_ram": 8.0}):
        with pytest.raises(PartialFailure) as error:
            ulna.predict(run, tmp_path / "images", out=tmp_path / f"out{len(extra)}", **extra)
        failed = error.value.failed
        assert failed.keys() == said.keys() - {"packed"} and error.value.done == 1
        assert all(said[name] in why and "defect" not in why for name, why in failed.items())
    capsys.readouterr()
    assert cli.run(["predict", str(run), str(tmp_path / "images"), "--out", str(tmp_path / "cli")]) == 3
    (tmp_path / "images" / "packed.zarr").write_bytes(b"PK")
    capsys.readouterr()
    assert cli.run(["predict", str(run), str(tmp_path / "images"), "--out", str(tmp_path / "cli2")]) == 2
    assert "packed.zarr: is a file, and OME-Zarr is a folder" in " ".join(capsys.readouterr().err.split())


def test_what_a_format_cannot_state_is_refused_before_it_is_predicted(tmp_path, monkeypatch):
    run = run_3d(tmp_path / "run")
    volume_of(tmp_path / "images", "x.nii.gz", (20, 20, 20), SHEARED)
    predicted = []
    monkeypatch.setattr("ulna.inference.segmenter.Segmenter.segment", lambda *a, **k: predicted.append(1))
    for extra in ({}, {"max_ram": 8.0}):
        with pytest.raises(UsageError, match=r"has sheared axes, which \.tif does not keep"):
            ulna.predict(run, tmp_path / "images", out=tmp_path / "out", format=["tiff"], **extra)
    with pytest.raises(UsageError, match=r"did you mean 'zarr'|no format named 'zar'"):
        ulna.predict(run, tmp_path / "images", out=tmp_path / "out", format=["zar"])
    assert not predicted


def test_without_the_extra_a_sentence_names_it(pair, monkeypatch):
    run = run_3d(pair / "run")

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("ulna.system.extras.import_module", absent)
    with pytest.raises(
        UsageError, match=r"holds OME-Zarr, which needs zarr, which is not installed; pip install 'ulna"
    ):
        ulna.predict(run, pair / "zarr", out=pair / "a")
    with pytest.raises(
        UsageError, match=r"--format zarr needs zarr, which is not installed; pip install 'ulna\[zarr\]'"
    ):
        ulna.predict(run, pair / "nifti", out=pair / "a", format=["zarr"])
    ulna.predict(run, pair / "nifti", out=pair / "a")


@pytest.mark.slow
def test_masks_are_scored_and_loaded_from_python(pair):
    run = run_3d(pair / "run")
    ulna.predict(run, pair / "zarr", out=pair / "a")
    (pair / "labels").mkdir()
    truth = pair / "labels" / "x.zarr"
    ulna.convert(pair / "a" / "x.ome.zarr", truth, labels=True)
    ulna.evaluate(pair / "a", pair / "labels", out=pair / "scores")
    summary = json.loads((pair / "scores" / "summary.json").read_text())
    assert (summary["missing"], summary["mean"]["dice"]["mean"]) == ([], 1.0)
    alone = ulna.evaluate(pair / "a" / "x.ome.zarr", pair / "labels").summary  # a folder, and one mask
    assert (alone["cases"], alone["mean"]["dice"]["mean"]) == (1, 1.0)
    with pytest.raises(UsageError, match=r"x\.zarr: is no folder of masks"):
        ulna.evaluate(truth, pair / "labels")
    result = ulna.load(run)(pair / "zarr" / "x.ome.zarr")
    np.testing.assert_array_equal(result.mask, mask(truth).array[0])
    assert result.save(pair / "b.zarr").name == "b.ome.zarr"
