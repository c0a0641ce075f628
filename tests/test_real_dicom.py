"""Real series from their folder to a verified file: what is bright is found, written three times and read by other code."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from tests import dicom_series as dicom
from tests.bright import brighter
from tests.data.formats.dicom.test_real_series import FOLDERS, case_of
from tests.places import SHARED
from ulna.data.formats.dicom.about import About
from ulna.data.formats.write import write_labels

pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root():
    if not (SHARED / "dicom").exists():
        pytest.skip("the real DICOM series are not on this machine")
    return SHARED / "dicom"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_prediction_of_a_real_series_is_the_same_voxels_in_the_same_place_for_other_readers(root, name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = case_of(root, name).read_image()
    files = [frame.header.path for frame in image.meta.stored.stack.frames]
    series = sitk.ReadImage([str(path) for path in files])
    values = sitk.GetArrayFromImage(series)
    than = float(np.percentile(values, 99.7)) + 0.5
    wanted = values > than
    assert wanted.any()
    result = brighter(image, than)(files[0].parent)
    about = About(("bright",))
    seg, contours, nifti = (
        write_labels(tmp_path / kind, result.mask, result.volume, about, kind) for kind in ("seg", "rtstruct", "nifti")
    )
    assert np.array_equal(frames_of_seg(seg, series), wanted)
    assert np.array_equal(frames_of_rtstruct(contours, files, wanted.shape), wanted)
    mask = sitk.ReadImage(str(nifti))
    assert np.array_equal(sitk.GetArrayFromImage(mask), wanted)
    for index in ((0, 0, 0), (mask.GetSize()[0] - 1, 3, 0), tuple(n - 1 for n in mask.GetSize())):
        off = np.subtract(mask.TransformIndexToPhysicalPoint(index), series.TransformIndexToPhysicalPoint(index))
        assert np.abs(off).max() < 1e-3


def frames_of_seg(path, series):
    """The bits of a SEG on the slices of SimpleITK's volume, by the places that its frames state."""
    made = dicom.pydicom.dcmread(path)
    found = np.zeros(series.GetSize()[::-1], bool)
    count, shape = int(made.NumberOfFrames), (made.Rows, made.Columns)
    bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), bitorder="little")[: count * shape[0] * shape[1]]
    directions = np.array(series.GetDirection()).reshape(3, 3)
    shared = made.SharedFunctionalGroupsSequence[0]
    cosines = np.array([float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient])
    assert np.abs(cosines - directions[:, :2].T.ravel()).max() < 1e-4
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    assert np.abs(np.array(spacing[::-1]) - series.GetSpacing()[:2]).max() < 1e-4
    for frame, group in zip(bits.reshape(count, *shape), made.PerFrameFunctionalGroupsSequence, strict=True):
        place = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        i, j, k = series.TransformPhysicalPointToContinuousIndex(place)
        assert max(abs(i), abs(j), abs(k - round(k))) < 1e-2
        found[round(k)] |= frame.astype(bool)
    return found


def frames_of_rtstruct(path, files, shape):
    """The contours as masks on the files of the series: centres of pixels by matplotlib, near each contour alone."""
    made, found = dicom.pydicom.dcmread(path), np.zeros(shape, bool)
    planes = list(enumerate(dicom.pydicom.dcmread(file, stop_before_pixels=True) for file in files))
    by_uid = {str(plane.get("SOPInstanceUID")): (k, plane) for k, plane in planes}
    for number, contour in enumerate(made.ROIContourSequence[0].ContourSequence):
        own = str(contour.ContourImageSequence[0].ReferencedSOPInstanceUID)
        points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
        k, plane = by_uid.get(own) or nearest(planes, points[0])
        axes = np.array([float(v) for v in plane.ImageOrientationPatient]).reshape(2, 3)
        down, across = (float(v) for v in plane.PixelSpacing)
        away = points - [float(v) for v in plane.ImagePositionPatient]
        assert np.abs(away @ np.cross(*axes)).max() < 1e-2, number
        pixels = away @ axes.T / (across, down)
        low, high = np.floor(pixels.min(axis=0)).astype(int), np.ceil(pixels.max(axis=0)).astype(int)
        x, y = np.meshgrid(range(low[0], high[0] + 1), range(low[1], high[1] + 1))
        inside = Outline(pixels, closed=False).contains_points(np.c_[x.ravel(), y.ravel()]).reshape(x.shape)
        rows, columns = y[inside], x[inside]
        found[k, rows, columns] ^= True
    return found


def nearest(planes, point):
    """The slice in which a point lies, of files that state no UID of their own."""

    def off(plane):
        axes = np.array([float(v) for v in plane.ImageOrientationPatient]).reshape(2, 3)
        return abs((point - [float(v) for v in plane.ImagePositionPatient]) @ np.cross(*axes))

    return min(planes, key=lambda one: off(one[1]))
