"""`ulna predict` and Python give the same mask for the same case: channel files, few slices, any orientation and spacing."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import ulna
from tests.data.pipeline.test_orientation import stored_as
from tests.explaining.test_explain import channels, run_folder
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.recipe import Labels

THREE = Labels(names=("background", "a", "b"))


def same(run, source, image, folder, **placed):
    """The mask that both give."""
    (row,) = ulna.predict(run, source, out=folder).cases
    by_command = read_labels(Source(folder / row["file"]), 3).array[0]
    result = ulna.load(run)([image], **placed)[0]
    assert np.array_equal(by_command.reshape(result.mask.shape), result.mask)
    assert len(np.unique(result.mask)) > 1
    return result.mask


def test_a_case_of_channel_files(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    files = [tmp_path / "images" / f"c_000{n}.png" for n in range(2)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(file)
    run = run_folder(tmp_path / "run", seed=1, labels=THREE, spacing=(1.0, 1.0), **channels(2))
    same(run, tmp_path / "images", files, tmp_path / "out")


def test_a_picture_on_a_grid_of_two_pixels(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (24, 30), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "x.png")
    run = run_folder(tmp_path / "run", seed=1, labels=THREE, spacing=(2.0, 2.0))
    same(run, tmp_path / "x.png", array, tmp_path / "out")


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_volume_of_few_slices_without_geometry(tmp_path, depth):
    """A .npy whose last axis could be colours: the plan says that it is a volume."""
    array = np.random.default_rng(0).normal(size=(16, 20, depth)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    run = run_folder(tmp_path / "run", seed=1, labels=THREE, spatial_dims=3, spacing=(1.0, 1.0, 1.0))
    assert same(run, tmp_path / "x.npy", array, tmp_path / "out").shape == array.shape


@pytest.mark.parametrize("shape", [(16, 20, 8), (16, 20, 1), (16, 1, 20), (1, 16, 20)])
def test_a_volume_of_another_orientation_and_spacing(tmp_path, shape):
    plan = {"spatial_dims": 3, "spacing": (1.0, 1.3, 2.0), "unit": "mm", "orientation": "RAS"}
    run = run_folder(tmp_path / "run", seed=1, labels=THREE, **plan)
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    masks = []
    for letters in ("RAS", "IPR"):
        other, affine = stored_as(array, np.diag([1.0, 1.0, 3.0, 1.0]), letters)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(other), affine), tmp_path / f"{letters}.nii.gz")
        mask = same(run, tmp_path / f"{letters}.nii.gz", other, tmp_path / letters, affine=affine)
        assert mask.shape == other.shape
        masks.append(np.asarray(nib.as_closest_canonical(nib.Nifti1Image(mask, affine)).dataobj))
    assert np.array_equal(*masks)
