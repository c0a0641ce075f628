"""The real series beside the project: read, written and read again by SimpleITK and by code of the tests on pydicom."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from tests import dicom_series as dicom
from tests.data.formats.dicom.test_masks_out import same_places, seg_places
from tests.places import SHARED
from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_labels
from ulna.data.layout.dataset import Dataset

ROOT = next((place for place in (SHARED / "dicom",) if place.exists()), None)
FOLDERS = (
    "chaos_ct_slices", "ct_3slice_seg", "ct_breast_rtstruct", "ct_jpeg2000_series", "ct_phantom_rtstruct",
    "mr_hippocampus_crops/Study1", "mr_hippocampus_crops/Study2", "mr_hippocampus_crops/Study3",
)  # fmt: skip


@pytest.fixture(scope="module")
def root():
    if ROOT is None:
        pytest.skip("the real DICOM series are not on this machine")
    return ROOT


def case_of(root, name):
    dataset = Dataset.from_folder(root / name, need_labels=False)
    assert len(dataset.cases) == 1
    return dataset.of_dims(3).cases[0]


@pytest.mark.parametrize("name", FOLDERS)
def test_place_and_values_are_those_of_simpleitk(root, name):
    sitk = pytest.importorskip("SimpleITK")
    case = case_of(root, name)
    volume = case.read_image()
    frames = volume.meta.stored.stack.frames
    image = sitk.ReadImage([str(frame.header.path) for frame in frames])
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.array[0])
    for index in ((0, 0, 0), (volume.size[0] - 1, 3, 0), tuple(n - 1 for n in volume.size)):
        mine = np.diag([-1, -1, 1]) @ (volume.affine @ [*index, 1])[:3]
        assert np.abs(mine - image.TransformIndexToPhysicalPoint(index)).max() < 1e-3


@pytest.mark.parametrize("name", FOLDERS)
def test_a_mask_written_beside_it_is_the_same_voxels_in_the_same_place(root, name, tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
    volume = case_of(root, name).read_image()
    mask = np.zeros(volume.size, np.uint8)
    mask[5:17, 8:14] = 1
    mask[9:12, 10:12] = 0  # a hole
    mask[20, 21, 0] = mask[30, 40, -1] = 1
    wanted = [np.diag([-1, -1, 1]) @ (volume.affine @ [*at, 1])[:3] for at in np.argwhere(mask)]
    assert same_places(seg_places(write_labels(tmp_path / "m", mask, volume, About(("x",)))), wanted)
    path = write_labels(tmp_path / "m", mask, volume, About(("x",)), "rtstruct")
    assert np.array_equal(read_again(path, volume), mask)
    nifti = nibabel.load(write_labels(tmp_path / "m", mask, volume, About(("x",)), "nifti"))
    assert np.array_equal(np.asarray(nifti.dataobj), mask) and np.allclose(nifti.affine, volume.affine)


def read_again(path, volume):
    """The contours as a mask, by matplotlib's polygons over all pixels of a slice."""
    from matplotlib.path import Path as Outline

    made, mask = dicom.pydicom.dcmread(path), np.zeros(volume.size, np.uint8)
    i, j = np.meshgrid(range(volume.size[0]), range(volume.size[1]), indexing="ij")
    for contour in made.ROIContourSequence[0].ContourSequence:
        points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3) * [-1, -1, 1]
        voxels = (np.linalg.inv(volume.affine) @ np.c_[points, np.ones(len(points))].T).T
        k = round(voxels[0, 2])
        assert np.abs(voxels[:, 2] - k).max() < 1e-3
        inside = Outline(voxels[:, :2], closed=False).contains_points(np.c_[i.ravel(), j.ravel()]).reshape(i.shape)
        mask[..., k] ^= inside.astype(np.uint8)
    return mask


def test_the_seg_of_a_liver_equals_the_nrrd_beside_it(root):
    case = case_of(root, "ct_3slice_seg")
    mine = case.read_labels()
    liver = mine.array[list(Dataset.from_folder(root / "ct_3slice_seg").labels.foreground).index("Liver")]
    other = onto_grid(read_labels(Source(root / "ct_3slice_seg" / "nrrd" / "liver_seg.nrrd"), 3), case.read_image())
    assert other.size == mine.size
    assert np.array_equal(liver > 0, other.array[0] > 0) and liver.any()


def test_the_segments_of_the_overlapping_seg_are_read_one_by_one(root):
    dataset = Dataset.from_folder(root / "ct_3slice_seg")
    assert dataset.labels.multilabel
    maps = dataset.of_dims(3).cases[0].read_labels().array
    made = dicom.pydicom.dcmread(root / "ct_3slice_seg" / "seg" / "partial_overlaps.dcm")
    bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), bitorder="little")
    frames = bits[: made.NumberOfFrames * made.Rows * made.Columns].reshape(made.NumberOfFrames, -1)
    counts = {}
    for frame, about in zip(frames, made.PerFrameFunctionalGroupsSequence, strict=True):
        number = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        counts[made.SegmentSequence[number - 1].SegmentLabel] = counts.get(
            made.SegmentSequence[number - 1].SegmentLabel, 0
        ) + int(frame.sum())
    for name, voxels in counts.items():
        assert maps[dataset.labels.names.index(name)].sum() == voxels
    assert (maps.sum(axis=0) > 1).any()


def test_a_nifti_beside_a_series_lies_on_it_also_where_its_axis_runs_the_other_way(root):
    """Bone and lung of a CT have the values that they should, whichever way the file is stored."""
    volume = case_of(root, "ct_jpeg2000_series").read_image()
    stored = read_labels(Source(root / "ct_jpeg2000_series_label_model.nii.gz"), 3)
    labels = onto_grid(stored, volume)
    assert labels.size == volume.size and np.allclose(labels.affine, volume.affine)
    assert not np.allclose(stored.affine, volume.affine)
    for value in np.unique(labels.array)[1:]:
        places = np.argwhere(labels.array[0] == value)
        world = places @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        voxels = np.rint((np.linalg.inv(stored.affine) @ np.c_[world, np.ones(len(world))].T)[:3].T).astype(int)
        assert (stored.array[0][tuple(voxels.T)] == value).all()
    chaos = case_of(root, "chaos_ct_slices").read_image()
    liver = onto_grid(read_labels(Source(root / "chaos_ct_slices_label_liver.nii.gz"), 3), chaos)
    assert liver.size == chaos.size
    inside = chaos.array[0][liver.array[0] > 0]
    assert 20 < np.median(inside) < 220  # HU of a liver


def test_a_real_rtstruct_has_the_area_of_its_contours(root):
    case = case_of(root, "ct_phantom_rtstruct")
    volume, labels = case.read_image(), case.read_labels()
    made = dicom.pydicom.dcmread(root / "ct_phantom_rtstruct" / "rt.dcm")
    areas = []
    for contour in made.ROIContourSequence[0].ContourSequence:
        x, y, _ = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3).T
        areas.append(abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2)
    outer, hole = areas
    assert labels.array.sum() * volume.spacing[0] * volume.spacing[1] == pytest.approx(outer - hole, rel=0.03)


def test_the_clinical_rtstruct_has_its_structures_on_the_one_slice_that_is_there(root):
    dataset = Dataset.from_folder(root / "ct_breast_rtstruct")
    assert dataset.labels.multilabel and {"BODY", "Heart", "Lt Lung"} <= set(dataset.labels.names)
    case = dataset.of_dims(3).cases[0]
    image, labels = case.read_image(), case.read_labels()
    maps = dict(zip(dataset.labels.names, labels.array, strict=True))
    assert any("above or below" in note for note in labels.meta.notes)
    assert not maps["Lt Lung"].any() or np.median(image.array[0][maps["Lt Lung"] > 0]) < -600
    assert ((maps["Heart"] > 0) <= (maps["BODY"] > 0)).all()


def test_a_dicom_tree_with_label_files_beside_is_no_folder_of_images(root):
    dataset = Dataset.from_folder(root, need_labels=False)
    assert dataset.layout == "dicom"
    assert len(dataset.cases) == 8
    assert any("label_liver.nii.gz" in note and "not read" in note for note in dataset.notes)
    for case in dataset.cases:
        assert read_image(case.images, 3).array.size
