"""`ulna convert`: the same values in the same place, whatever the formats, or a sentence that says why not."""

import json

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

import ulna
from ulna.data.formats.opening import open_image, read_whole
from ulna.data.formats.source import Source
from ulna.errors import DataError, UsageError

zarr = pytest.importorskip("zarr")

OBLIQUE = np.array([[0.6, -1.6, 0, 5], [0.8, 1.2, 0, -3], [0, 0, 2.5, 9], [0, 0, 0, 1.0]])
LPS = np.diag([-0.7, -0.7, 2.5, 1.0])
SHEARED = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def opened(path):
    with open_image([Source(path)]) as image:
        return read_whole(image)


def nifti(path, affine, shape=(20, 31, 12), dtype=np.int16):
    values = np.random.default_rng(0).normal(0, 300, shape).astype(dtype)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd", ".zarr", ".ome.zarr"])
@pytest.mark.parametrize("shape", [(20, 31, 12), (20, 31, 12, 3)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_there_and_back(tmp_path, suffix, shape, dtype):
    image = nifti(tmp_path / "a.nii.gz", OBLIQUE, shape, dtype)
    made = ulna.convert(image, tmp_path / f"b{suffix}")
    back = ulna.convert(made.file, tmp_path / "c.nii.gz")
    first, there, last = opened(image), opened(made.file), opened(back.file)
    for other in (there, last):
        assert other.array.dtype == first.array.dtype
        np.testing.assert_array_equal(other.array, first.array)
        np.testing.assert_allclose(other.affine, first.affine, atol=1e-5)
        np.testing.assert_allclose(other.spacing, first.spacing, rtol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii.gz", f"b{suffix}", "c.nii.gz"}


def test_a_tiff_shows_what_radiologists_see(tmp_path):
    """The first page is the lowest, the first row the front, the first column the patient's right."""
    values = np.zeros((4, 5, 6), np.uint16)
    values[0, 0, 5], values[3, 4, 0] = 1, 2  # of LPS: front right at the head, back left at the feet
    nibabel.Nifti1Image(values, LPS).to_filename(tmp_path / "a.nii")
    made = ulna.convert(tmp_path / "a.nii", tmp_path / "a.ome.tif")
    pages = tifffile.imread(made.file)
    assert pages.shape == (6, 5, 4) and pages[5, 0, 0] == 1 and pages[0, 4, 3] == 2
    np.testing.assert_allclose(opened(made.file).spacing, (2.5, 0.7, 0.7))
    assert "no orientation" in made.notes[-1]
    nibabel.Nifti1Image(values[::-1, ::-1], np.diag([0.7, 0.7, 2.5, 1])).to_filename(
        tmp_path / "b.nii"
    )  # the same in RAS
    other = ulna.convert(tmp_path / "b.nii", tmp_path / "b.tif")
    np.testing.assert_array_equal(tifffile.imread(other.file), pages)


def test_pictures(tmp_path):
    values = np.random.default_rng(1).integers(0, 255, (300, 520, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    for name in ("a.tif", "a.npy", "a.zarr"):
        made = ulna.convert(tmp_path / "a.png", tmp_path / name)
        np.testing.assert_array_equal(opened(made.file).array, np.moveaxis(values, -1, 0))
        assert made.unit == "px"
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].is_tiled and file.pages[0].compression == 8
    with pytest.raises(UsageError, match=r"states no spacing, which \.nii needs; give it with --spacing"):
        ulna.convert(tmp_path / "a.png", tmp_path / "a.nii")
    made = ulna.convert(tmp_path / "a.png", tmp_path / "a.nii", spacing="0.5x0.25")
    volume = opened(made.file)
    np.testing.assert_allclose(volume.spacing, (0.25, 0.5))  # columns first, as NIfTI has them
    np.testing.assert_array_equal(volume.array, values.transpose(2, 1, 0))
    assert not volume.meta.oriented and "no orientation" in made.notes[-1]
    with pytest.raises(UsageError, match=r"--spacing 0\.5: give 2 lengths above 0"):
        ulna.convert(tmp_path / "a.png", tmp_path / "b.nii", spacing="0.5")


def test_a_stack_without_orientation(tmp_path):
    values = np.random.default_rng(4).integers(0, 255, (5, 30, 20), np.uint8)
    about = {"axes": "ZYX", "unit": "um", "spacing": 3.0}
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(1 / 0.5, 1 / 0.5), metadata=about)
    ulna.convert(tmp_path / "a.tif", tmp_path / "a.nii.gz")
    back = opened(ulna.convert(tmp_path / "a.nii.gz", tmp_path / "b.tif").file)
    np.testing.assert_array_equal(back.array[0], values)
    np.testing.assert_allclose(back.spacing, (3e-3, 5e-4, 5e-4), rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_written_upright_or_with_its_tag(tmp_path, orientation):
    values = np.random.default_rng(2).integers(0, 60000, (300, 270), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=[(274, 3, 1, orientation, True)])
    first = opened(tmp_path / "a.tif")
    for name in ("b.tif", "b.zarr"):
        np.testing.assert_array_equal(opened(ulna.convert(tmp_path / "a.tif", tmp_path / name).file).array, first.array)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".tif"])
def test_what_a_format_does_not_keep_is_refused_and_nothing_is_left(tmp_path, suffix):
    image = nifti(tmp_path / "a.nii", SHEARED)
    with pytest.raises(UsageError, match=rf"has sheared axes, which \{suffix} does not keep; write \.nii"):
        ulna.convert(image, tmp_path / "new" / f"b{suffix}")
    oblique = nifti(tmp_path / "o.nii", OBLIQUE)
    with pytest.raises(UsageError, match=r"lies oblique in space, which \.tif does not state"):
        ulna.convert(oblique, tmp_path / "new" / "b.tif")
    with pytest.raises(UsageError, match=r"\.npy states no spacing"):
        ulna.convert(oblique, tmp_path / "new" / "b.npy")
    with pytest.raises(UsageError, match=r"has no ending of a format that is written"):
        ulna.convert(oblique, tmp_path / "new" / "b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "o.nii"]


def test_what_is_there_stays(tmp_path):
    image = nifti(tmp_path / "a.nii", LPS)
    ulna.convert(image, tmp_path / "b.zarr")
    for target, said in (("a.nii", "is the image itself"), ("b.zarr", "exists; remove it")):
        with pytest.raises(UsageError, match=said):
            ulna.convert(image, tmp_path / target, overwrite=True)
    (tmp_path / "c.nii").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists; --overwrite replaces it"):
        ulna.convert(image, tmp_path / "c.nii")
    ulna.convert(image, tmp_path / "c.nii", overwrite=True)
    np.testing.assert_array_equal(opened(tmp_path / "c.nii").array, opened(image).array)


def test_a_label_map_of_an_older_ome_zarr_is_refused(tmp_path):
    old = tmp_path / "old.ome.zarr"
    group = zarr.open_group(str(old), mode="w", zarr_format=2)
    group.create_array("0", shape=(8, 9), chunks=(8, 9), dtype="uint8")
    axes = [{"name": name, "type": "space"} for name in "yx"]
    steps = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": steps}]
    mask = tmp_path / "mask.npy"
    np.save(mask, np.zeros((8, 9), np.uint8))
    with pytest.raises(
        UsageError, match=r"0\.4, whose readers do not find a label map of 0\.5; convert the image first"
    ):
        ulna.convert(mask, old / "labels" / "liver.zarr")
    assert not (old / "labels" / "liver.zarr").exists()


def test_levels_and_labels_of_ome_zarr(tmp_path):
    image = nifti(tmp_path / "a.nii", LPS, (20, 700, 12))
    ulna.convert(image, tmp_path / "a.ome.zarr")
    ulna.convert(image, tmp_path / "a.ome.zarr" / "labels" / "liver.zarr")
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r")
    (told,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in told["axes"]] == ["z", "y", "x"] and told["axes"][0]["unit"] == "millimeter"
    scales = [one["coordinateTransformations"][0]["scale"] for one in told["datasets"]]
    np.testing.assert_allclose(scales, [[2.5, 0.7, 0.7], [5.0, 1.4, 1.4], [10.0, 2.8, 2.8]])
    full, half, quarter = (group[one["path"]][:] for one in told["datasets"])
    np.testing.assert_array_equal(half, full[::2, ::2, ::2])
    np.testing.assert_array_equal(quarter, full[::4, ::4, ::4])
    assert group["labels"].attrs["ome"]["labels"] == ["liver.zarr"]
    assert "image-label" in group["labels/liver.zarr"].attrs["ome"]


def test_ome_zarr_of_others(tmp_path):
    """0.4 in Zarr 2, micrometres, a time axis of 1, scales in two places; and what is none."""
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    values = np.random.default_rng(3).integers(0, 9, (1, 2, 4, 5, 6)).astype(np.uint16)
    group.create_array("0", data=values, chunks=(1, 1, 2, 5, 6))
    axes = [{"name": name, "type": kind} for name, kind in (("t", "time"), ("c", "channel"))]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = {"type": "scale", "scale": [1, 1, 4.0, 0.5, 0.5]}
    told = {
        "version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 2, 2, 2]}],
    }  # fmt: skip
    group.attrs["multiscales"] = [told]
    volume = opened(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume.array, values[0])
    np.testing.assert_allclose(volume.spacing, (8e-3, 1e-3, 1e-3))
    assert volume.unit == "mm" and volume.affine is None
    group.attrs.clear()
    with pytest.raises(DataError, match="holds no OME-Zarr image"):
        opened(tmp_path / "a.zarr")


def test_the_command(tmp_path, capsys):
    from ulna.cli import main as cli

    image = nifti(tmp_path / "a.nii", LPS)
    assert cli.run(["convert", str(image), str(tmp_path / "b.nrrd")]) == 0
    assert "b.nrrd (20 x 31 x 12 of 0.7 x 0.7 x 2.5 mm, int16)" in capsys.readouterr().out
    assert cli.run(["--json", "convert", str(image), str(tmp_path / "b.zarr")]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [20, 31, 12]
