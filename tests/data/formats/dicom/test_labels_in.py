"""Labels in: SEG of three kinds and RTSTRUCT, on the voxels of their series, compared with slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests import dicom_series as dicom
from tests.data.formats.dicom.test_series import ORIENTATIONS, read
from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.naming import Named, class_of
from ulna.data.formats.dicom.polygons import fill, trace
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Series, Source, Structure
from ulna.data.formats.write import write_labels
from ulna.errors import DataError

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra dicom)")


def on(folder, labels, *, structures=(), overlapping=False):
    """A label file as a source on the series of a folder."""
    files = tuple(sorted(folder.iterdir()))
    return Source(labels, None, Series((labels,), (), files, tuple(structures), overlapping))


def seg(path, files, mask, kind="BINARY", names=("a", "b"), **kwargs):
    """A SEG by highdicom: mask (frames, rows, columns), in the order of the files."""
    described = [
        hd.seg.SegmentDescription(
            number, name, hd.sr.CodedConcept("85756007", "SCT", "Tissue"), hd.sr.CodedConcept(str(number), "99T", f"type of {name}"),
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, start=1)
    ]  # fmt: skip
    made = hd.seg.Segmentation(
        [dicom.pydicom.dcmread(file) for file in files], mask, kind, described, dicom.uid(path), 1, dicom.uid(path, 1), 1,
        "m", "m", "1", "0", **kwargs,
    )  # fmt: skip
    made.save_as(path)
    return path


def slices_of(made):
    """The slice of the series on which every frame of a SEG lies, which need not be in their order."""
    groups = made.PerFrameFunctionalGroupsSequence
    return [round((float(one.PlanePositionSequence[0].ImagePositionPatient[2]) - 30) / 2) for one in groups]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_seg_is_read_voxel_by_voxel(tmp_path, kind):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(4, 5, 7))
    mask = np.random.default_rng(0).integers(0, 3, (4, 5, 7)).astype(np.uint8)
    path = seg(tmp_path / "seg.dcm", files, mask, kind)
    assert np.array_equal(read_labels(on(tmp_path / "s", path), 3).array[0], mask.transpose(2, 1, 0))


def test_a_fractional_seg_counts_from_a_half(tmp_path):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(3, 4, 5))
    hundredths = np.random.default_rng(0).integers(0, 101, (3, 4, 5))
    hundredths.flat[:3] = 49, 50, 51
    mask = (hundredths / 100).astype(np.float32)  # no value lies between two of the file
    path = seg(tmp_path / "seg.dcm", files, mask, "FRACTIONAL", ("a",), max_fractional_value=100)
    volume = read_labels(on(tmp_path / "s", path), 3)
    assert np.array_equal(volume.array[0] == 1, (hundredths >= 50).transpose(2, 1, 0))
    assert any("fractional" in note for note in volume.meta.notes)


def test_bits_of_frames_that_do_not_end_with_a_byte(tmp_path):
    """5 x 7 = 35 bits a frame, against a loop over all bits."""
    files = dicom.write_series(tmp_path / "s", dicom.ramp(6, 5, 7))
    mask = (np.random.default_rng(1).random((6, 5, 7)) < 0.5).astype(np.uint8)
    path = seg(tmp_path / "seg.dcm", files, mask, names=("a",))
    made = dicom.pydicom.dcmread(path)
    slow = [(made.PixelData[n // 8] >> (n % 8)) & 1 for n in range(mask.size)]
    assert slow == mask[slices_of(made)].ravel().tolist()
    assert np.array_equal(read_labels(on(tmp_path / "s", path), 3).array[0], mask.transpose(2, 1, 0))


def test_overlapping_segments_are_channels_or_refused_with_the_way_out(tmp_path):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(3, 4, 5))
    mask = np.zeros((3, 4, 5, 2), np.uint8)
    mask[:2, :3, :3, 0], mask[1:, 1:, 1:, 1] = 1, 1
    path = seg(tmp_path / "seg.dcm", files, mask)
    with pytest.raises(DataError, match=r"4 voxels that are 'a' and 'b'.*multilabel"):
        read_labels(on(tmp_path / "s", path), 3)
    both = read_labels(on(tmp_path / "s", path, overlapping=True), 3).array
    assert np.array_equal(both, mask.transpose(3, 2, 1, 0))


def test_segments_are_chosen_by_name_by_meaning_and_by_code(tmp_path):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(2, 4, 5))
    mask = np.arange(40).reshape(2, 4, 5).astype(np.uint8) % 4
    path = seg(tmp_path / "seg.dcm", files, mask, names=("Left Kidney", "liver", "spleen"))
    for wanted in ("left_kidney", "type of Left Kidney", "99T:1", "1"):
        volume = read_labels(on(tmp_path / "s", path, structures=[Structure("x", (wanted,))]), 3)
        assert np.array_equal(volume.array[0], (mask == 1).transpose(2, 1, 0).astype(np.uint8))
    union = [Structure("organ", ("liver", "spleen")), Structure("kidney", ("Left Kidney",))]
    volume = read_labels(on(tmp_path / "s", path, structures=union), 3)
    assert np.array_equal(volume.array[0], np.array([0, 2, 1, 1])[mask].transpose(2, 1, 0))
    assert class_of(Named(1, "b", ("a",)), [Structure("a", ()), Structure("b", ())]) == 1  # the label before its codes


@pytest.mark.parametrize("turn", ["as it is", "rows reversed", "columns reversed", "transposed"])
def test_a_seg_whose_rows_run_another_way_lies_in_the_same_place(tmp_path, turn):
    """Its own orientation is used, as some writers mirror it: the column cosine is negative then."""
    values = dicom.ramp(2, 4, 5)
    files = dicom.write_series(tmp_path / "s", values)
    mask = (np.random.default_rng(3).random((2, 4, 5)) < 0.4).astype(np.uint8)
    mask[:, 0, 0] = 1
    path = seg(tmp_path / "seg.dcm", files, mask, names=("a",))
    made = dicom.pydicom.dcmread(path)
    shared = made.SharedFunctionalGroupsSequence[0]
    frames = stored = mask[slices_of(made)]
    corner = {"rows reversed": (0, 3), "columns reversed": (4, 0)}.get(turn, (0, 0))
    if turn == "rows reversed":
        frames, cosines = stored[:, ::-1], [1, 0, 0, 0, -1, 0]
    elif turn == "columns reversed":
        frames, cosines = stored[:, :, ::-1], [-1, 0, 0, 0, 1, 0]
    elif turn == "transposed":
        frames, cosines = stored.transpose(0, 2, 1), [0, 1, 0, 1, 0, 0]
    else:
        cosines = [1, 0, 0, 0, 1, 0]
    made.Rows, made.Columns = frames.shape[1:]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [str(v) for v in cosines]
    for frame in made.PerFrameFunctionalGroupsSequence:
        place = [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
        frame.PlanePositionSequence[0].ImagePositionPatient = [
            str(place[0] + corner[0]),
            str(place[1] + corner[1]),
            str(place[2]),
        ]
    made.PixelData = np.packbits(np.ascontiguousarray(frames).ravel(), bitorder="little").tobytes()
    made.save_as(path)
    assert np.array_equal(read_labels(on(tmp_path / "s", path), 3).array[0], mask.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda m: setattr(m, "FrameOfReferenceUID", "1.2.3"), "another frame of reference"),
        (lambda m: setattr(m, "PixelData", m.PixelData[:2]), "cut short"),
        (lambda m: delattr(m, "PixelData"), "no pixels"),
        (
            lambda m: setattr(m, "PerFrameFunctionalGroupsSequence", m.PerFrameFunctionalGroupsSequence[:1]),
            "describes 1",
        ),
        (lambda m: setattr(m.SegmentSequence[0], "SegmentNumber", 9), "does not describe"),
        (
            lambda m: setattr(m.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", ["2", "2"]),
            "do not lie on the pixels of its series",
        ),
        (
            lambda m: setattr(
                m.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0],
                "ImagePositionPatient",
                ["-10", "5", "99"],
            ),
            "do not lie on the pixels of its series",
        ),
    ],
)
def test_a_damaged_seg_is_named(tmp_path, change, wanted):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(3, 4, 5))
    path = seg(tmp_path / "seg.dcm", files, np.ones((3, 4, 5), np.uint8), names=("a",))
    made = dicom.pydicom.dcmread(path)
    change(made)
    made.save_as(path)
    with pytest.raises(DataError, match=rf"seg\.dcm.*{wanted}"):
        read_labels(on(tmp_path / "s", path), 3)


def contours(path, files, regions, kind="CLOSED_PLANAR"):
    """An RTSTRUCT by hand: name -> contours (n, 3) in mm."""

    def item(**elements):
        one = dicom.pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(one, keyword, value)
        return one

    made = dicom.dataset(np.zeros((1, 1), np.int16))
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "ImagePositionPatient"):
        delattr(made, keyword)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    made.Modality = "RTSTRUCT"
    made.StructureSetROISequence = [item(ROINumber=n, ROIName=name) for n, name in enumerate(regions, start=1)]
    made.ROIContourSequence = [
        item(
            ReferencedROINumber=n,
            ContourSequence=[
                item(ContourGeometricType=kind, ContourData=[dicom.text(v) for v in np.ravel(points)])
                for points in drawn
            ],
        )
        for n, drawn in enumerate(regions.values(), start=1)
    ]
    series = item(SeriesInstanceUID=dicom.pydicom.dcmread(files[0]).SeriesInstanceUID)
    study = item(RTReferencedSeriesSequence=[series])
    made.ReferencedFrameOfReferenceSequence = [item(RTReferencedStudySequence=[study])]
    return dicom.save(made, path)


def square(x0, y0, x1, y1, z):
    return np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)])


def test_contours_are_filled_by_the_even_odd_rule_and_what_is_dropped_is_counted(tmp_path):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(3, 10, 12), origin=(0, 0, 0))
    ring = [square(1.5, 1.5, 8.5, 8.5, 2), square(3.5, 3.5, 5.5, 5.5, 2)]
    odd = [square(0, 0, 1, 1, 2)[:1], square(0, 0, 1, 1, 2)[:2], square(1, 1, 3, 3, 40), ring[0]]
    path = contours(tmp_path / "rt.dcm", files, {"ring": [*ring, *odd]})
    volume = read_labels(on(tmp_path / "s", path), 3)
    wanted = np.zeros((12, 10, 3), np.uint8)
    wanted[2:9, 2:9, 1] = 1
    wanted[4:6, 4:6, 1] = 0
    assert np.array_equal(volume.array[0], wanted)
    told = " ".join(volume.meta.notes)
    assert "2 contours of one or two points" in told
    assert "1 contours above or below the slices" in told and "1 contours that are there twice" in told


def test_a_keyhole_is_a_hole(tmp_path):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(1, 10, 12), origin=(0, 0, 0))
    outer, inner = square(1.5, 1.5, 8.5, 8.5, 0), square(3.5, 3.5, 5.5, 5.5, 0)
    joined = np.concatenate([outer[:1], inner, inner[:1], outer])
    volume = read_labels(on(tmp_path / "s", contours(tmp_path / "rt.dcm", files, {"ring": [joined]})), 3)
    assert volume.array.sum() == 49 - 4


@pytest.mark.parametrize("points", [[["0", "1"]], [[np.nan, 0, 0] * 3]])
def test_contours_that_are_no_points_are_named(tmp_path, points):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(2, 4, 4))
    path = contours(tmp_path / "rt.dcm", files, {"a": [square(0, 0, 2, 2, 30)]})
    made = dicom.pydicom.dcmread(path)
    text = "\\".join(str(v) for v in points[0]).encode()
    tag = dicom.pydicom.datadict.tag_for_keyword("ContourData")
    element = dicom.pydicom.dataelem.RawDataElement(dicom.pydicom.tag.Tag(tag), "DS", len(text), text, 0, False, True)
    made.ROIContourSequence[0].ContourSequence[0][tag] = element
    dicom.save(made, path)
    with pytest.raises(DataError, match=r"rt\.dcm.*finite numbers in threes"):
        read_labels(on(tmp_path / "s", path), 3)


def test_contours_across_the_slices_are_named(tmp_path):
    files = dicom.write_series(tmp_path / "s", dicom.ramp(3, 4, 4), origin=(0, 0, 0))
    across = np.array([(0, 1, 0), (3, 1, 0), (3, 1, 4), (0, 1, 4)])
    with pytest.raises(DataError, match=r"rt\.dcm.*do not lie in the planes"):
        read_labels(on(tmp_path / "s", contours(tmp_path / "rt.dcm", files, {"a": [across]})), 3)


def inside(point, polygons):
    """Even-odd, a ray to the right, edge by edge: the literal reference."""
    count = 0
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if (y0 <= point[1] < y1 or y1 <= point[1] < y0) and x0 + (point[1] - y0) * (x1 - x0) / (y1 - y0) > point[0]:
                count += 1
    return count % 2 == 1


def test_filling_equals_a_ray_from_every_pixel():
    random = np.random.default_rng(0)
    for _ in range(30):
        polygons = [random.uniform(-3, 15, (random.integers(3, 9), 2)) for _ in range(random.integers(1, 4))]
        filled = fill(polygons, 11, 13)
        for y, x in itertools.product(range(11), range(13)):
            assert filled[y, x] == inside((x, y), polygons)


def test_tracing_and_filling_a_mask_gives_it_back_with_its_area():
    """Also a contour at a time, as readers do that know no even-odd rule over several."""
    random = np.random.default_rng(0)
    for _ in range(400):
        mask = random.random((random.integers(1, 14), random.integers(1, 14))) < random.random()
        drawn = trace(mask)
        assert np.array_equal(fill(drawn, *mask.shape), mask)
        united = np.any([fill([one], *mask.shape) for one in drawn], axis=0) if drawn else np.zeros_like(mask)
        assert np.array_equal(united, mask)
        area = sum((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2 for x, y in (one.T for one in drawn))
        assert area == pytest.approx(mask.sum())


@pytest.mark.parametrize("format", ["seg", "rtstruct"])
def test_what_is_written_is_read_again_in_all_orientations(tmp_path, format):
    for number, orientation in enumerate(ORIENTATIONS[::5]):
        folder = tmp_path / str(number)
        dicom.write_series(folder, dicom.ramp(4, 7, 9), orientation=orientation, spacing=(0.7, 0.9), step=3)
        volume = read(folder)
        mask = np.random.default_rng(number).integers(0, 3, volume.size).astype(np.uint8)
        path = write_labels(tmp_path / f"out{number}", mask, volume, About(("a", "b")), format)
        assert np.array_equal(read_labels(on(folder, path), 3).array[0], mask)
