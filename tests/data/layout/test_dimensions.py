"""Whether a file that could be either is 2D or 3D is the data set's to say, not the position of an axis of length 1."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from tests.data.pipeline.test_orientation import ALL_48, stored_as
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_labels
from ulna.data.layout.dataset import Dataset
from ulna.data.quality.check import check, check_dataset
from ulna.evaluation.evaluate import evaluate
from ulna.planning.fingerprint import fingerprint

AFFINE = np.array([(0.8, 0, 0, -10), (0, 1.5, 0, 5), (0, 0, 4.0, 7), (0, 0, 0, 1)])
SINGLE = [(25, 23, 1), (25, 1, 23), (1, 25, 23)]


def write_set(root, arrays, suffix=".nii.gz", affine=AFFINE):
    """Pairs of images and label maps, a bright half each."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number, shape in enumerate(arrays):
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(0, max(1, n // 2)) for n in shape)] = 1
        image = (100 * label + rng.normal(0, 5, shape)).astype(np.float32)
        for kind, array in (("images", image), ("labels", label)):
            path = root / kind / f"c{number}{suffix}"
            if suffix == ".npy":
                np.save(path, array)
            elif suffix == ".nii.gz":
                nib.save(nib.Nifti1Image(array, affine), path)
            else:
                sitk = pytest.importorskip("SimpleITK")
                sitk.WriteImage(sitk.GetImageFromArray(array.transpose()), str(path))
    return root


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
@pytest.mark.parametrize("shape", SINGLE)
def test_a_volume_of_one_slice_is_2d_alone_and_3d_where_it_is_asked_for(shape, suffix, tmp_path):
    (tmp_path / "set").mkdir()
    write_set(tmp_path / "set", [shape], suffix)
    path = tmp_path / "set" / "images" / f"c0{suffix}"
    flat, whole = read_image([Source(path)]), read_image([Source(path)], 3)
    assert (flat.spatial_dims, flat.size) == (2, tuple(n for n in shape if n > 1))
    assert (whole.spatial_dims, whole.size) == (3, shape)
    assert np.array_equal(flat.array.ravel(), whole.array.ravel())  # what the file stores, nothing is computed
    for volume in (flat, whole):  # and the mask lies on the file's own grid
        written = write_labels(tmp_path / f"mask{volume.spatial_dims}", (volume.array[0] > 50).astype(np.uint8), volume)
        again = read_labels(Source(written), 3)
        assert again.size == shape
        np.testing.assert_allclose(again.affine, whole.affine, atol=1e-5)


def test_the_affine_of_a_slice_names_its_own_axes_first(tmp_path):
    array = np.arange(6, dtype=np.int16).reshape(2, 1, 3)
    for letters in ALL_48:
        other, its = stored_as(array, AFFINE, letters)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(other), its), tmp_path / "x.nii")
        slice_ = read_image([Source(tmp_path / "x.nii")])
        assert slice_.size == tuple(n for n in other.shape if n > 1)
        for voxel in itertools.product(*map(range, slice_.size)):
            place = slice_.affine @ (*voxel, 0, 1)
            value = array[tuple(np.rint(np.linalg.inv(AFFINE) @ place)[:3].astype(int))]
            assert slice_.array[(0, *voxel)] == value


@pytest.mark.parametrize("single", SINGLE)
def test_a_slice_among_volumes_is_a_volume(single, tmp_path):
    root = write_set(tmp_path / "set", [(25, 23, 8), single, (25, 23, 9)])
    report = check(root)
    assert report.ok, report
    assert [one.spatial_dims for one in report.scans] == [3, 3, 3]
    dataset = Dataset.from_folder(root).of_dims(report.spatial_dims)
    assert dataset.case("c1").read_image().size == single
    assert dataset.case("c1").read_labels().size == single
    assert evaluate(root / "labels", root).summary["cases"] == 3


@pytest.mark.parametrize("single", SINGLE)
def test_slices_alone_are_2d(single, tmp_path):
    report = check_dataset(Dataset.from_folder(write_set(tmp_path / "set", [single] * 2)))
    assert report.ok, report
    assert report.spatial_dims == 2
    plane = {2: (0, 1), 1: (0, 2), 0: (1, 2)}[single.index(1)]
    found = fingerprint(report, ["c0", "c1"])
    assert found.worlds == plane
    assert [found.world_axes[world] for world in plane] == [0, 1]


def test_slices_of_two_planes_are_noted(tmp_path):
    report = check_dataset(Dataset.from_folder(write_set(tmp_path / "set", [SINGLE[0], SINGLE[0], SINGLE[2]])))
    assert report.ok, report
    (note,) = [note for note in report.notes if "most" in note]
    assert note.startswith("c2: lies in another plane than most (2 axial, 1 sagittal)")


def test_an_array_of_few_slices_among_volumes_is_a_volume(tmp_path):
    root = write_set(tmp_path / "set", [(12, 14, 6), (12, 14, 3), (12, 14, 1)], ".npy")
    report = check(root)
    assert report.ok, report
    assert [(one.spatial_dims, one.channels) for one in report.scans] == [(3, 1)] * 3
    assert evaluate(root / "labels", root).summary["cases"] == 3
    assert read_image([Source(root / "images" / "c1.npy")]).channels == 3  # alone it is a colour picture, as before


def test_a_copy_stored_in_another_orientation_is_found(tmp_path):
    root = write_set(tmp_path / "set", [(22, 24, 16)] * 4)
    rng = np.random.default_rng(1)
    for number in range(4):
        blobs = np.kron(rng.normal(size=(11, 12, 8)), np.ones((2, 2, 2))).astype(np.float32)
        nib.save(nib.Nifti1Image(blobs, AFFINE), root / "images" / f"c{number}.nii.gz")
        if number == 3:
            for kind, array in (
                ("images", blobs),
                ("labels", np.asarray(nib.load(root / "labels" / "c3.nii.gz").dataobj)),
            ):
                other, affine = stored_as(array, AFFINE, "PSR")
                nib.save(nib.Nifti1Image(np.ascontiguousarray(other), affine), root / kind / "turned.nii.gz")
    assert check_dataset(Dataset.from_folder(root)).copies == (("c3", "turned"),)


@pytest.mark.parametrize("unstated", [1, 3])
def test_files_without_an_orientation_among_others_are_noted(tmp_path, unstated):
    """They are turned as LAS, which their format assumes: the others may lie the other way."""
    root = write_set(tmp_path / "set", [(12, 14, 6)] * 3)
    for number in range(unstated):
        for kind in ("images", "labels"):
            path = root / kind / f"c{number}.nii.gz"
            image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None)
            image.header.set_xyzt_units("mm")
            nib.save(image, path)
    found = [note for note in check(root).notes if "states no orientation, others do" in note]
    assert len(found) == (unstated < 3)
    assert all(note.startswith("c0:") for note in found)


def test_2d_and_3d_files_that_can_be_nothing_else_are_still_a_problem(tmp_path):
    root = write_set(tmp_path / "set", [(12, 14, 6), (12, 14, 7)])
    write_set(tmp_path / "flat", [(12, 14)], ".npy")
    for kind in ("images", "labels"):
        (tmp_path / "flat" / kind / "c0.npy").rename(root / kind / "flat.npy")
    assert any("is 2D, most cases are 3D" in problem.what for problem in check(root).problems)
