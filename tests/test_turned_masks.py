"""A mask that states no orientation is on the voxels of a volume that states one by chance alone: refused wherever they meet.

All volumes are cubes of 1 mm, so that neither size nor spacing tells.
"""

import nibabel
import numpy as np
import pytest
import tifffile

import ulna
from tests.data.formats.test_zarr import foreign
from tests.inference.test_predict import run_folder
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.errors import DataError, UsageError
from ulna.viewer.hand import lay_mask, read_at_hand

SIZE = (16, 16, 16)


def box():
    mask = np.zeros(SIZE, np.uint8)
    mask[1:5, 2:12, 3:9] = 1
    return mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, resolution=(10.0, 10.0), resolutionunit="CENTIMETER", metadata={"axes": "ZYX"})
    elif path.suffix == ".zarr":
        pytest.importorskip("zarr")
        foreign(path, array, "zyx", unit="millimeter")
    else:
        file = nibabel.Nifti1Image(array, np.eye(4))
        file.header.set_xyzt_units("mm")
        nibabel.save(file, path)
    return path


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 200, SIZE).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".npy"])
@pytest.mark.parametrize("states", ["image", "labels"])
def test_check_and_its_repair_refuse_the_pair(tmp_path, suffix, states):
    for number in range(2):
        for kind, array in (("images", image(number)), ("labels", box())):
            save(tmp_path / "data" / kind / f"c{number}{'.nii.gz' if kind[:5] == states[:5] else suffix}", array)
    report = ulna.check(tmp_path / "data")
    assert [problem.what for problem in report.problems] == [
        f"states {'no orientation, and its image does' if states == 'image' else 'an orientation, and its image none'}: "
        "its voxels may lie turned or mirrored against those"
    ] * 2
    with pytest.raises(UsageError, match="may lie turned or mirrored"):
        ulna.check(tmp_path / "data", fix=tmp_path / "fixed")


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".npy"])
def test_pairs_in_which_neither_states_an_orientation_stay_fine(tmp_path, suffix):
    for number in range(2):
        save(tmp_path / "images" / f"c{number}{suffix}", image(number))
        save(tmp_path / "labels" / f"c{number}{suffix}", box())
    assert not ulna.check(tmp_path).problems
    laid = lay_mask(tmp_path / "labels" / f"c0{suffix}", read_at_hand(tmp_path / "images" / f"c0{suffix}"))
    np.testing.assert_array_equal(laid.mask, box())
    assert ulna.evaluate(tmp_path / "labels", tmp_path).summary["mean"]["dice"]["mean"] == 1.0


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".npy"])
def test_evaluate_and_the_viewer_refuse_the_pair(tmp_path, suffix):
    placed, bare = (
        save(tmp_path / "a" / "c.nii.gz", box()),
        save(tmp_path / "b" / f"c{suffix}", box().transpose(2, 1, 0)),
    )
    for masks, references, states in ((bare, placed, "no orientation"), (placed, bare, "an orientation")):
        with pytest.raises(DataError, match=f"states {states}, and its reference .* turned or mirrored"):
            ulna.evaluate(masks.parent, references.parent)
    with pytest.raises(UsageError, match=r"states no orientation, and the image does: .* give both in formats"):
        lay_mask(bare, read_at_hand(placed))
    with pytest.raises(DataError, match=r"states no orientation, and channel c\.nii\.gz does"):
        read_image([Source(placed), Source(bare)])


def test_a_mask_of_predict_as_tiff_is_not_scored_nor_drawn_turned(tmp_path):
    run = run_folder(
        tmp_path / "run", 0, spatial_dims=3, strides=((2, 2, 2),), whole_image_limit=10, unit="mm", orientation="RAS",
        spacing=(1.0, 1.0, 1.0), patch=SIZE,
    )  # fmt: skip
    save(tmp_path / "images" / "c.nii.gz", image())
    ulna.predict(run, tmp_path / "images", out=tmp_path / "nifti")
    ulna.predict(run, tmp_path / "images", out=tmp_path / "tiff", format=["tiff"], report=True)
    page = (tmp_path / "tiff" / "report.html").read_text("utf-8")
    assert "no picture: the mask or the image states no orientation, so they may lie turned" in page
    with pytest.raises(DataError, match=r"c\.tif: states no orientation, and its reference does"):
        ulna.evaluate(tmp_path / "tiff", tmp_path / "nifti")
