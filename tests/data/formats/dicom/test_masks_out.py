"""Masks out: a marker's mask lies on the marker, in SEG, RTSTRUCT and NIfTI, read again by code of the tests alone."""

from __future__ import annotations

import itertools
import warnings

import nibabel
import numpy as np
import pytest
from matplotlib.path import Path as Outline

from tests import dicom_series as dicom
from tests.bright import brighter
from tests.data.formats.dicom.test_series import ORIENTATIONS, SHAPES, SPACINGS, oriented, read
from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.seg_writing import write_seg
from ulna.data.formats.dicom.verified import check_written
from ulna.data.formats.write import write_labels
from ulna.errors import DataError

pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")

ABOUT = About(("liver", "left kidney"), "unet", "1.2.3")


def marked(folder, shape, orientation, reverse):
    """A series with an unsymmetric marker near one corner; the files, and LPS mm of the marker's voxels."""
    values = np.zeros(SHAPES[shape], np.int16)
    spacing, step = SPACINGS[shape]
    values[0, 1:4, 2] = values[0, 1, 2:6] = values[-1, 2, 3] = 100
    paths = dicom.write_series(
        folder, values, orientation=oriented(ORIENTATIONS[orientation], shape),
        spacing=spacing, step=step, thickness=step, reverse=reverse,
    )  # fmt: skip
    files = [dicom.pydicom.dcmread(path) for path in paths]
    places = [dicom.patient_place(made, *at) for made in files for at in np.argwhere(made.pixel_array == 100)]
    return files, np.array(places)


def same_places(a, b):
    """Whether two sets of places are one, to the thousandth of a mm."""
    return {tuple(np.rint(p * 1e3).astype(int)) for p in a} == {tuple(np.rint(p * 1e3).astype(int)) for p in b}


def seg_places(path):
    """LPS mm of all voxels of segment 1, from the bits and the equation of the standard."""
    made = dicom.pydicom.dcmread(path)
    bits = np.unpackbits(np.frombuffer(made.PixelData, np.uint8), bitorder="little")
    count, size = int(made.NumberOfFrames), made.Rows * made.Columns
    frames = bits[: count * size].reshape(count, made.Rows, made.Columns)
    shared, found = made.SharedFunctionalGroupsSequence[0], []
    for frame, about in zip(frames, made.PerFrameFunctionalGroupsSequence, strict=True):
        plane = dicom.pydicom.Dataset()
        plane.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        plane.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
        plane.ImagePositionPatient = about.PlanePositionSequence[0].ImagePositionPatient
        of = about.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        assert of[0].ReferencedSegmentNumber == 1
        found += [dicom.patient_place(plane, *at) for at in np.argwhere(frame)]
    return found


def rtstruct_places(path, files):
    """LPS mm of the voxel centres of the series that lie in a contour, by matplotlib."""
    made, found = dicom.pydicom.dcmread(path), []
    by_uid = {one.SOPInstanceUID: one for one in files}
    for contour in made.ROIContourSequence[0].ContourSequence:
        points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
        plane = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        axes = np.array([float(v) for v in plane.ImageOrientationPatient]).reshape(2, 3)
        outline = Outline(points @ axes.T, closed=False)
        for at in np.ndindex(plane.Rows, plane.Columns):
            place = dicom.patient_place(plane, *at)
            assert abs((points[0] - place) @ np.cross(*axes)) < 1e-3  # in the plane of its slice
            if outline.contains_point(place @ axes.T):
                found.append(place)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", ["seg", "rtstruct", "nifti"])
@pytest.mark.parametrize("part", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.share(2)
def test_the_mask_of_a_marker_lies_on_the_marker_in_48_orientations(tmp_path, shape, format, part):
    """Quickly every fifth of them, which takes another one of 24 and another order each time."""
    for number, (orientation, reverse) in enumerate([*itertools.product(range(24), (False, True))][::part]):
        folder = tmp_path / str(number)
        files, places = marked(folder, shape, orientation, reverse)
        volume = read(folder)
        mask = brighter(volume, than=50).mask(volume)  # as `ulna predict` does: turned for the network, and back
        path = write_labels(folder / "out", mask, volume, About(("marker",)), format)
        if format == "seg":
            found = seg_places(path)
        elif format == "rtstruct":
            found = rtstruct_places(path, files)
        else:
            image = nibabel.load(path)
            voxels = np.argwhere(np.asarray(image.dataobj) == 1)
            found = [(np.diag([-1, -1, 1]) @ (image.affine @ [*voxel, 1])[:3]) for voxel in voxels]
        assert len(found) == len(places)
        assert same_places(found, places), (shape, orientation, reverse)


@pytest.mark.parametrize("format", ["seg", "rtstruct"])
def test_a_tilted_series_gets_its_mask_on_its_own_slices(tmp_path, format):
    values = np.zeros((5, 8, 9), np.int16)
    values[:, 2:5, 3] = values[:, 2, 3:6] = 100
    paths = dicom.write_series(tmp_path / "s", values, tilt=(0.0, 1.0))
    files = [dicom.pydicom.dcmread(path) for path in paths]
    volume = read(tmp_path / "s")
    mask = (volume.array[0] == 100).astype(np.uint8)
    path = write_labels(tmp_path / "out", mask, volume, About(("marker",)), format)
    found = seg_places(path) if format == "seg" else rtstruct_places(path, files)
    assert same_places(
        found, [dicom.patient_place(made, *at) for made in files for at in np.argwhere(made.pixel_array == 100)]
    )


def test_a_seg_says_what_its_segments_are_and_belongs_to_the_study(tmp_path):
    paths = dicom.write_series(tmp_path / "s", dicom.ramp(3, 6, 7))
    volume, source = read(tmp_path / "s"), dicom.pydicom.dcmread(paths[0])
    mask = np.zeros(volume.size, np.uint8)
    mask[1:3, 2, 1], mask[4, 4, 2] = 1, 2
    made = dicom.pydicom.dcmread(write_labels(tmp_path / "out", mask, volume, ABOUT))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "AccessionNumber"):
        assert made.get(keyword) == source.get(keyword)
    assert made.SeriesInstanceUID != source.SeriesInstanceUID
    assert made.SegmentationType == "BINARY" and made.Modality == "SEG"
    liver, kidney = made.SegmentSequence
    assert (liver.SegmentLabel, kidney.SegmentLabel) == ("liver", "left kidney")
    kind = liver.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("10200004", "SCT")
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.CodeValue == "64033007"
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    about = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (about.AlgorithmName, about.AlgorithmVersion) == ("unet", "1.2.3")
    assert liver.RecommendedDisplayCIELabValue != kidney.RecommendedDisplayCIELabValue
    referenced = {item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {dicom.pydicom.dcmread(path).SOPInstanceUID for path in paths}


def test_highdicom_reads_the_same_voxels_in_the_patients_space(tmp_path):
    import highdicom

    dicom.write_series(tmp_path / "s", dicom.ramp(4, 6, 7), orientation=((0, 0, -1), (0, 1, 0)), step=3)
    volume = read(tmp_path / "s")
    mask = (np.random.default_rng(0).random(volume.size) < 0.3).astype(np.uint8)
    seg = highdicom.seg.segread(write_labels(tmp_path / "out", mask, volume, ABOUT))
    other = seg.get_volume(combine_segments=True)
    wanted = {
        tuple(np.rint((volume.affine @ [*at, 1])[:3] * [-1, -1, 1] * 100).astype(int)) for at in np.argwhere(mask)
    }
    found = {tuple(np.rint((other.affine @ [*at, 1])[:3] * 100).astype(int)) for at in np.argwhere(other.array)}
    assert found == wanted


def test_names_that_the_standard_does_not_hold_are_text_in_a_scheme_of_our_own(tmp_path):
    dicom.write_series(tmp_path / "s", dicom.ramp(2, 4, 4))
    volume = read(tmp_path / "s")
    about = About(("Zyste, groß",))
    made = dicom.pydicom.dcmread(write_labels(tmp_path / "out", np.ones(volume.size, np.uint8), volume, about))
    (segment,) = made.SegmentSequence
    assert segment.SegmentLabel == "Zyste, groß"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99ULNA"


def test_overlapping_classes_are_segments_that_share_voxels(tmp_path):
    dicom.write_series(tmp_path / "s", dicom.ramp(3, 6, 7))
    volume = read(tmp_path / "s")
    maps = np.zeros((2, *volume.size), np.uint8)
    maps[0, 1:4, 1:4], maps[1, 2:6, 2:5, 1] = 1, 1
    for format in ("seg", "rtstruct"):
        made = dicom.pydicom.dcmread(write_labels(tmp_path / "out", maps, volume, ABOUT, format))
        assert len(made.get("SegmentSequence") or made.StructureSetROISequence) == 2


def test_an_empty_mask_is_written_and_empty(tmp_path):
    dicom.write_series(tmp_path / "s", dicom.ramp(3, 6, 7))
    volume = read(tmp_path / "s")
    for format in ("seg", "rtstruct"):
        write_labels(tmp_path / "out", np.zeros(volume.size, np.uint8), volume, ABOUT, format)
    assert seg_places_or_none(tmp_path / "out.dcm") == 0


def seg_places_or_none(path):
    return int(np.unpackbits(np.frombuffer(dicom.pydicom.dcmread(path).PixelData, np.uint8)).sum())


def test_holes_are_keyholes_and_islands_are_contours_of_their_own(tmp_path):
    dicom.write_series(tmp_path / "s", dicom.ramp(1, 9, 9))
    volume = read(tmp_path / "s")
    mask = np.zeros(volume.size, np.uint8)
    mask[1:8, 1:8], mask[2:7, 2:7], mask[4, 4] = 1, 0, 1
    path = write_labels(tmp_path / "out", mask, volume, About(("ring",)), "rtstruct")
    made = dicom.pydicom.dcmread(path)
    ring, island = made.ROIContourSequence[0].ContourSequence
    assert ring.ContourGeometricType == "CLOSED_PLANAR"
    assert ring.NumberOfContourPoints == len(ring.ContourData) // 3 == 10 and island.NumberOfContourPoints == 4


@pytest.mark.parametrize("explicit", [False, True])
def test_a_contour_of_more_than_64_kb_is_written_and_read_again(tmp_path, explicit):
    """A comb, in one contour of thousands of points; also as writers put it whose elements state their kinds (as UN)."""
    dicom.write_series(tmp_path / "s", np.zeros((1, 90, 90), np.int16), origin=(-123.456, 98.765, 0))
    volume = read(tmp_path / "s")
    mask = np.zeros(volume.size, np.uint8)
    mask[::2] = mask[:, ::9] = 1
    mask[1::4, 4::9], mask[3::4, 6::9] = 1, 1
    path = write_labels(tmp_path / "out", mask, volume, About(("comb",)), "rtstruct")
    made = dicom.pydicom.dcmread(path)
    longest = max(
        sum(len(v.original_string) + 1 for v in one.ContourData) for one in made.ROIContourSequence[0].ContourSequence
    )
    assert longest > 1 << 16
    if explicit:
        with warnings.catch_warnings(action="ignore"):
            dicom.save(made, path)
        assert isinstance(dicom.pydicom.dcmread(path).ROIContourSequence[0].ContourSequence[0].ContourData, bytes)
    check_written("rtstruct", path, mask, volume.meta.stored.stack)


def test_an_enhanced_file_gets_a_seg_of_its_frames(tmp_path):
    from ulna.data.formats.read import read_image
    from ulna.data.formats.source import Source

    path = dicom.save(dicom.multiframe(dicom.ramp(4, 5, 6), order=[2, 0, 3, 1]), tmp_path / "in.dcm")
    volume = read_image([Source(path)], 3)
    mask = np.zeros(volume.size, np.uint8)
    mask[1, 2, 0] = mask[3, 1, 2] = 1
    found = seg_places(write_labels(tmp_path / "out", mask, volume, ABOUT))
    wanted = [(volume.affine @ [*at, 1])[:3] * [-1, -1, 1] for at in ([1, 2, 0], [3, 1, 2])]
    assert same_places(found, wanted)
    write_labels(tmp_path / "out", mask, volume, ABOUT, "rtstruct")


def test_a_file_that_says_something_else_than_the_mask_is_refused(tmp_path, monkeypatch):
    """The writer is made to forget a voxel, as a defect would; nothing is left in place."""
    from ulna.data.formats.dicom import verified

    dicom.write_series(tmp_path / "s", dicom.ramp(3, 6, 7))
    volume = read(tmp_path / "s")
    mask = np.zeros(volume.size, np.uint8)
    mask[1:4, 2:4] = 1

    def flipped(path, labels, stack, about):
        return write_seg(path, labels[..., ::-1] * (np.arange(labels.shape[0]) != 1)[:, None, None], stack, about)

    monkeypatch.setitem(verified._WRITERS, "seg", flipped)
    with pytest.raises(DataError, match=r"differs from the mask in \d+ voxels; it is not kept"):
        write_labels(tmp_path / "out", mask, volume, ABOUT)
    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize("format", ["seg", "rtstruct"])
def test_the_check_sees_a_mask_that_is_moved_or_mirrored(tmp_path, format):
    dicom.write_series(tmp_path / "s", dicom.ramp(4, 12, 12))
    volume = read(tmp_path / "s")
    mask = np.zeros(volume.size, np.uint8)
    mask[2:9, 3:8, :2] = 1
    path, stack = write_labels(tmp_path / "out", mask, volume, ABOUT, format), volume.meta.stored.stack
    check_written(format, path, mask, stack)
    for other in (mask[::-1], mask[:, ::-1], mask[..., ::-1], np.roll(mask, 1, axis=0)):
        with pytest.raises(DataError, match="differs"):
            check_written(format, path, other, stack)


def test_a_picture_without_a_place_gets_a_tiff(tmp_path):
    from ulna.data.formats.read import read_image
    from ulna.data.formats.source import Source

    made = dicom.dataset(dicom.ramp(1, 5, 6)[0], modality="CR")
    del made.ImagePositionPatient, made.ImageOrientationPatient, made.FrameOfReferenceUID
    volume = read_image([Source(dicom.save(made, tmp_path / "a.dcm"))])
    mask = np.zeros((5, 6), np.uint8)
    mask[1, 4] = 1
    assert np.array_equal(read_image([Source(write_labels(tmp_path / "out", mask, volume, ABOUT))]).array[0], mask)
    for format in ("seg", "rtstruct", "nifti"):
        with pytest.raises(DataError, match="no place"):
            write_labels(tmp_path / "out", mask, volume, ABOUT, format)


def test_series_without_identities_and_uids_get_new_ones_which_is_said(tmp_path, caplog):
    def bare(made, _):
        for keyword in (*dicom.IDENTITY, "StudyInstanceUID", "SOPClassUID"):
            if keyword in made:
                delattr(made, keyword)

    dicom.write_series(tmp_path / "s", dicom.ramp(3, 6, 7), change=bare)
    volume = read(tmp_path / "s")
    with caplog.at_level("INFO", logger="ulna"):
        write_labels(tmp_path / "out", np.ones(volume.size, np.uint8), volume, ABOUT)
    assert "state no StudyInstanceUID" in caplog.text
