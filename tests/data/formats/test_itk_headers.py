"""Headers of .mha and .nrrd by hand, without any other reader: what they mean, and what is refused.

Arrays are compared bit by bit: their values are copied in another order of axes and never computed with, so they are the same on
every processor. Geometry, which is computed, has a tolerance (`same_geometry`).
"""

import sys

import numpy as np
import pytest

from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_labels
from ulna.data.volume import same_geometry
from ulna.errors import DataError

META = "NDims = 3\nDimSize = 2 3 4\n{}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\n{}\nencoding: raw\n\n"
SIZES = "sizes: 2 3 4"
DIRECTIONS = "space directions: (0,2,0) (-3,0,0) (0,0,4)\nspace origin: (10,20,30)"


@pytest.fixture(autouse=True)
def hidden(monkeypatch):
    """SimpleITK is an oracle of the tests alone: nothing here may need it."""
    monkeypatch.setitem(sys.modules, "SimpleITK", None)


def volume_of(tmp_path, head, values=bytes(24)):
    path = tmp_path / ("a.nrrd" if head.startswith("NRRD") else "a.mha")
    path.write_bytes(head.encode() + values)
    return read_image([Source(path)])


def test_a_row_of_the_matrix_is_the_direction_of_an_axis(tmp_path):
    lines = "TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 10 20 30\nElementSpacing = 2 3 4"
    volume = volume_of(tmp_path, META.format(lines))
    # the first axis goes to the back, the second to the right: ITK counts to the left and to the back, RAS the other way
    expected = [[0, 3, 0, -10], [-2, 0, 0, -20], [0, 0, 4, 30], [0, 0, 0, 1]]
    assert volume.affine.tolist() == expected and volume.spacing == (2, 3, 4) and volume.meta.oriented
    assert same_geometry(volume, volume_of(tmp_path, NRRD.format(f"space: LPS\n{SIZES}\n{DIRECTIONS}")))


@pytest.mark.parametrize(
    ("space", "signs", "oriented"),
    [
        ("space: left-posterior-superior", (-1, -1), True),
        ("space: RAS", (1, 1), True),
        ("space: left-anterior-superior", (-1, 1), True),
        ("space: 3D-right-handed", (-1, -1), False),
        ("space dimension: 3", (-1, -1), False),
    ],
)
def test_the_space_of_a_nrrd_file_says_where_its_axes_lead(tmp_path, space, signs, oriented):
    volume = volume_of(tmp_path, NRRD.format(f"{space}\n{SIZES}\n{DIRECTIONS}"))
    expected = (
        np.array([[0, -3, 0, 10], [2, 0, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]]) * np.array([*signs, 1, 1])[:, None]
    )
    assert volume.affine.tolist() == expected.tolist() and volume.meta.oriented == oriented


def test_channels_lie_where_the_kinds_say_also_where_all_axes_have_one_length(tmp_path):
    values = bytes(range(16))
    for kinds, axis in (
        ("vector domain domain domain", 0),
        ("domain list domain domain", 1),
        ("domain domain domain RGBA", 3),
    ):
        sizes = [4 if n == axis and "RGBA" in kinds else 2 for n in range(4)]
        size = int(np.prod(sizes))
        head = f"NRRD0004\ntype: uchar\ndimension: 4\nsizes: {' '.join(map(str, sizes))}\nkinds: {kinds}\nencoding: raw\n\n"
        volume = volume_of(tmp_path, head, bytes(range(size)))
        assert np.array_equal(volume.array, np.moveaxis(np.arange(size).reshape(sizes, order="F"), axis, 0))
    head = META.replace("2 3 4", "2 2 2").format("ElementNumberOfChannels = 2")
    assert volume_of(tmp_path, head, values).array[:, 0, 0, 1].tolist() == [8, 9]


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_label_maps_come_back_where_they_were(tmp_path, suffix):
    head = (
        NRRD.format(f"space: LPS\n{SIZES}\n{DIRECTIONS}")
        if suffix == ".nrrd"
        else META.format("ElementSpacing = 2 3 4")
    )
    volume = volume_of(tmp_path, head)
    for labels in (np.arange(24).reshape(2, 3, 4), np.arange(24).reshape(2, 3, 4) * 500, np.ones((2, 2, 3, 4), int)):
        back = read_labels(Source(write_labels(tmp_path / "out" / "mask", labels, volume)))
        assert np.array_equal(back.array, labels.reshape(-1, 2, 3, 4)) and same_geometry(back, volume)


def test_lengths_in_another_unit_are_converted_with_a_note(tmp_path):
    units = '\nspace units: "um" "um" "um"'
    volume = volume_of(tmp_path, NRRD.format(f"space: LPS\n{SIZES}\n{DIRECTIONS}{units}"))
    assert volume.spacing == (0.002, 0.003, 0.004) and volume.affine[2].tolist() == [0, 0, 0.004, 0.03]
    assert volume.meta.notes == ("states lengths in a unit of 0.001 mm; they are converted to mm",)
    back = read_labels(Source(write_labels(tmp_path / "mask", volume.array[0], volume)))
    assert same_geometry(back, volume) and back.unit == "mm"


@pytest.mark.parametrize(("unit", "spacing"), [("um", (0.002, 0.003, 0.004)), ("cm", (20, 30, 40)), ("?", (2, 3, 4))])
def test_a_meta_image_in_another_unit_is_converted(tmp_path, unit, spacing):
    volume = volume_of(tmp_path, META.format(f"DistanceUnits = {unit}\nElementSpacing = 2 3 4"))
    assert (volume.unit, volume.spacing) == ("mm", spacing)
    assert bool(volume.meta.notes) == (unit != "?")


def test_what_states_no_distance_is_in_pixels(tmp_path):
    for lines in ("space: LPS\n" + SIZES, SIZES + "\nthicknesses: 1 2 3", SIZES + "\nspacings: nan nan nan"):
        assert volume_of(tmp_path, NRRD.format(lines)).unit == "px"
    assert volume_of(tmp_path, META.format("Offset = 1 2 3")).unit == "px"


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("Offset = 1 2", "Offset is '1 2', where 3 numbers belong"),
        ("Offset = 1 2 3 4", "where 3 numbers belong"),
        ("Offset = 1 nan 3", "where 3 numbers belong"),
        ("TransformMatrix = 1 0 0 1", "where 9 numbers belong"),
        ("CenterOfRotation = 1 2", "where 3 numbers belong"),
        ("Offset = 1_0 2 3", "where 3 numbers belong"),
        ("Offset = 1 2 3\nOrigin = 1 2 4", "Offset and Origin differ"),
        ("Offset = 1 2 3\nOffset = 1 2 4", "Offset is stated twice"),
        ("Rotation = 0 1 0 1 0 0 0 0 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix and Rotation differ"),
        ("elementspacing = 1 2 3", "elementspacing is spelt ElementSpacing"),
        ("FileFormatVersion = 1\nOrigin = 1 2 3", "no fields of its FileFormatVersion"),
        ("BinaryDataByteOrderMSB = True\nElementByteOrderMSB = False", "ElementByteOrderMSB differ"),
        ("ElementNumberOfChannels = 0", "ElementNumberOfChannels is 0"),
        ("HeaderSize = -1", "apart from its header"),
        ("ElementSpacing = 1 0 1", r"has a voxel size of \(1.0, 0.0, 1.0\)"),
        ("ElementSpacing = 1 1e999 1", "where 3 numbers belong"),
        ("ElementSpacing = 1 1e308 1\nTransformMatrix = 1 0 0 0 9 0 0 0 1", "not finite"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1\nElementSpacing = 1 1 1", "singular"),
        ("TransformMatrix = 0 0 0 0 0 0 0 0 0", "singular"),
    ],
)
def test_what_a_metaimage_leaves_open_is_refused(tmp_path, lines, fault):
    with pytest.raises(DataError, match=fault):
        volume_of(tmp_path, META.format(lines))


def test_the_number_of_axes_stands_before_what_is_counted_by_it(tmp_path):
    with pytest.raises(DataError, match="DimSize stands before NDims"):
        volume_of(tmp_path, META.format("Foo = 1").replace("NDims = 3\nDimSize = 2 3 4", "DimSize = 2 3 4\nNDims = 3"))
    with pytest.raises(DataError, match="does not state DimSize"):
        volume_of(tmp_path, META.format("Foo = 1").replace("DimSize = 2 3 4\n", ""))
    turned = "NDims = 4\nDimSize = 2 3 4 1\nTransformMatrix = 0 0 0 1 0 1 0 0 0 0 1 0 1 0 0 0"
    with pytest.raises(DataError, match="has a fourth axis that is turned into space"):
        volume_of(tmp_path, META.format("Foo = 1").replace("NDims = 3\nDimSize = 2 3 4", turned))


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("space: LPS\n" + SIZES + "\nspacings: 1 2 3", "spacings and space are both stated"),
        ("space: LPS\n" + SIZES + "\n" + DIRECTIONS + "\naxis mins: 1 2 3", "axismins and space are both stated"),
        ("space: LPS\n" + SIZES + "\n" + DIRECTIONS + '\nunits: "mm" "" ""', "units and space are both stated"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1,0,0) none (0,0,3)", "leaves out an axis of space"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1,0,0) (0,0,3)", "for 3 vectors"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1,0) (0,1) (0,3)", "where 3 numbers belong"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1,0,0) (0,0,0) (0,0,3)", "not finite"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1,0,0) (2,0,0) (0,0,3)", "singular"),
        ("space: LPS\n" + SIZES + "\n" + DIRECTIONS + "\nkinds: RGB-color domain domain", "an axis of 2 values has the kind RGB-color, of 3"),
        ("space: LPS\n" + SIZES + "\n" + DIRECTIONS + "\nkinds: 2-vector domain domain", r"has 2 axes for a space of 3 .*; give the axis of channels a kind"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1,0,0) (1,0,0)x (0,0,3)", "for 3 vectors"),
        ("space: RAST\n" + SIZES, r"states positions in 'RAST', which is not read; save it in left-posterior-superior"),
        ("space: LPS\nspace dimension: 3\n" + SIZES, "space and space dimension are both stated"),
        (SIZES + "\n" + DIRECTIONS, "space directions stands before space"),
        (SIZES + "\nspacings: 1 nan 3", "spacings leaves out an axis"),
        (SIZES + "\nspacings: 1 2", "spacings is '1 2', for 3 axes"),
        (SIZES + "\nspacings: 1 2 3 4", "for 3 axes"),
        (SIZES + "\nspacings: 1 -2 3", "has a voxel size"),
        (SIZES + "\nspacings: 1 2 3\nspacings: 1 2 3", "spacings is stated twice"),
        (SIZES + "\nthicknesses: 1 2 x", "where 3 numbers belong"),
        (SIZES + "\nkinds: list vector domain", "kinds names 2 axes of channels"),
        (SIZES + "\nkinds: domain domain tensor", "kinds has 'tensor', which is not read"),
        (SIZES + "\ncenterings: cell cell corner", "neither cell nor node"),
        (SIZES + "\nlabels: a b c", "labels is 'a b c', for 3 axes"),
        (SIZES + '\nlabels: "a" "b" "c" d', "for 3 axes"),
        (SIZES + "\nspacing: 1 2 3", "'spacing: 1 2 3' is no field"),
        (SIZES + "\nspacings:1 2 3", "'spacings:1 2 3' is no field"),
        (SIZES + "\nendian: middle", "neither little nor big"),
        (SIZES.replace("2 3 4", "2 3"), "declares the sizes '2 3' for 3 axes"),
        ("# nothing", "does not state sizes"),
        ("space dimension: 99999999999\n" + SIZES, "space dimension is 99999999999"),
        ("space: LPS\n" + SIZES + "\nspace directions: (1e300,0,0) (0,1,0) (0,0,1)", "not finite"),
    ],
)  # fmt: skip
def test_what_a_nrrd_file_leaves_open_is_refused(tmp_path, lines, fault):
    with pytest.raises(DataError, match=fault):
        volume_of(tmp_path, NRRD.format(lines))


def test_headers_that_ask_for_much_are_refused_at_once(tmp_path):
    ones = "1 " * 100_000
    with pytest.raises(DataError, match="declares the sizes"):
        volume_of(
            tmp_path, f"NDims = 100000\nDimSize = {ones}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n", b"1"
        )
    with pytest.raises(DataError, match="declares the sizes"):
        volume_of(tmp_path, f"NRRD0004\ntype: uchar\ndimension: 100000\nsizes: {ones}\nencoding: raw\n\n", b"1")


def test_bytes_without_an_order_and_versions_to_come_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not state endian"):
        volume_of(tmp_path, NRRD.replace("uchar", "short").format(SIZES), bytes(48))
    with pytest.raises(DataError, match="'NRRD0006' is no version of NRRD that is known"):
        volume_of(tmp_path, NRRD.replace("NRRD0004", "NRRD0006").format(SIZES))
