"""Series in: their place and values equal those of other readers, whatever the files are called or how they are packed."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest

from tests import dicom_series as dicom
from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.errors import DataError, UsageError

UNITS = np.vstack([np.eye(3), -np.eye(3)])
ORIENTATIONS = [(tuple(a), tuple(b)) for a, b in itertools.product(UNITS, UNITS) if abs(a @ b) < 1e-9]
TURN = np.array([[0.936, -0.283, 0.209], [0.321, 0.925, -0.202], [-0.136, 0.256, 0.957]])  # about 20 degrees
TURN = np.linalg.qr(TURN)[0] * np.sign(np.diag(np.linalg.qr(TURN)[1]))
SHAPES = {"odd": (5, 9, 7), "anisotropic": (4, 6, 8), "one slice": (1, 7, 9), "oblique": (5, 6, 8)}
SPACINGS = {
    "odd": ((1.0, 1.0), 1.0),
    "anisotropic": ((0.7, 0.9), 5.0),
    "one slice": ((1.2, 0.8), 3.0),
    "oblique": ((0.7, 1.1), 2.5),
}


def read(folder, dims=3, **wishes):
    (source,), _ = series_in(folder, Wishes(**wishes))
    return read_image([source], dims)


def in_patient(volume, index):
    """LPS mm of a voxel."""
    return np.diag([-1, -1, 1]) @ (volume.affine @ [*index, 1])[:3]


def oriented(orientation, shape):
    return tuple(tuple(TURN @ np.array(one)) for one in orientation) if shape == "oblique" else orientation


def sitk_volume(folder):
    """Values (i, j, k) and affine (LPS) as SimpleITK reads a folder."""
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_voxel_lies_where_its_slice_says_in_24_orientations_and_both_orders(tmp_path, shape, part):
    """48 series a shape, quickly ten; the place of a voxel by the standard's equation, written out for every slice."""
    for number, (orientation, reverse) in enumerate([*itertools.product(ORIENTATIONS, (False, True))][::part]):
        folder, values = tmp_path / str(number), dicom.ramp(*SHAPES[shape])
        spacing, step = SPACINGS[shape]
        paths = dicom.write_series(
            folder,
            values,
            orientation=oriented(orientation, shape),
            spacing=spacing,
            step=step,
            thickness=step,
            reverse=reverse,
        )
        volume = read(folder)
        assert volume.size == (values.shape[2], values.shape[1], values.shape[0])
        for path in paths:
            made = dicom.pydicom.dcmread(path)
            stored = made.pixel_array
            for row, column in ((0, 0), (1, 3), (stored.shape[0] - 1, stored.shape[1] - 1)):
                (index,) = np.argwhere(volume.array[0] == stored[row, column])
                assert np.abs(in_patient(volume, index) - dicom.patient_place(made, row, column)).max() < 1e-3


@pytest.mark.parametrize("shape", ["odd", "anisotropic", "oblique"])
def test_place_and_values_are_those_of_simpleitk(tmp_path, shape):
    for number, orientation in enumerate(ORIENTATIONS):
        folder = tmp_path / str(number)
        spacing, step = SPACINGS[shape]
        values = dicom.ramp(*SHAPES[shape])
        dicom.write_series(folder, values, orientation=oriented(orientation, shape), spacing=spacing, step=step)
        volume, (other, affine) = read(folder), sitk_volume(folder)
        for index in itertools.product(*[(0, n - 1) for n in other.shape]):
            (mine,) = np.argwhere(volume.array[0] == other[index])
            assert np.abs(in_patient(volume, mine) - (affine @ [*index, 1])[:3]).max() < 1e-3


def test_neither_names_nor_instance_numbers_say_the_order(tmp_path):
    values = dicom.ramp(6, 4, 5)
    dicom.write_series(tmp_path, values, change=lambda made, k: setattr(made, "InstanceNumber", [3, 1, 2, 6, 5, 4][k]))
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"z{(number * 5) % 7}")  # nor do they end in .dcm
    assert np.array_equal(read(tmp_path).array[0], values.transpose(2, 1, 0))


SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big endian": "1.2.840.10008.1.2.2",
}


@pytest.mark.parametrize("name", SYNTAXES)
def test_transfer_syntaxes(tmp_path, name):
    values = dicom.ramp(3, 4, 5) - 20
    for k in range(3):
        made = dicom.dataset(values[k], number=k, position=(0, 0, 2.0 * k))
        if name == "big endian":
            made.PixelData = values[k].astype(">i2").tobytes()
            made["PixelData"].VR = "OW"
        dicom.save(made, tmp_path / f"{k}.dcm", syntax=SYNTAXES[name])
    assert np.array_equal(read(tmp_path).array[0], values.transpose(2, 1, 0))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
def test_packed_series(tmp_path, syntax):
    """RLE, and the JPEG of wavelets and that of prediction, all without loss."""
    values = np.random.default_rng(0).integers(0, 4000, (3, 64, 72)).astype(np.uint16)
    for k in range(3):
        made = dicom.dataset(values[k], number=k, position=(0, 0, 2.0 * k))
        made.compress(syntax)
        made.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    assert np.array_equal(read(tmp_path).array[0], values.transpose(2, 1, 0))


def test_a_file_without_preamble_is_read(tmp_path):
    values = dicom.ramp(3, 4, 5)
    paths = dicom.write_series(tmp_path, values)
    for path in paths:
        made = dicom.pydicom.dcmread(path)
        del made.file_meta
        made.preamble = None
        made.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read(tmp_path).array[0], values.transpose(2, 1, 0))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_an_enhanced_file_is_a_volume(tmp_path, order):
    values = dicom.ramp(4, 5, 6)
    path = dicom.save(dicom.multiframe(values, order=order, intercept=-1000, spacing=(0.5, 0.75)), tmp_path / "one")
    volume = read_image([Source(path)], 3)
    assert np.array_equal(volume.array[0], values.transpose(2, 1, 0).astype(int) - 1000)
    assert volume.spacing == (0.75, 0.5, 2.0)


def test_slopes_and_intercepts_are_those_of_every_slice(tmp_path):
    values, slopes = dicom.ramp(3, 4, 5), [0.5, 2.0, -1.5]

    def change(made, k):
        made.RescaleSlope, made.RescaleIntercept = dicom.text(slopes[k]), dicom.text(k)

    dicom.write_series(tmp_path, values, change=change)
    wanted = np.stack([values[k] * slopes[k] + k for k in range(3)])
    volume = read(tmp_path)
    assert volume.array.dtype == np.float32
    assert np.allclose(volume.array[0], wanted.transpose(2, 1, 0))


def test_values_that_are_stored_as_fractions_stay_fractions(tmp_path):
    """FloatPixelData of a parametric map: a header that is read without its pixels does not tell."""
    values = dicom.ramp(3, 4, 5) / np.float32(7)
    values[1, 2, 3] = np.nan

    def change(made, k):
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(made, keyword)
        made.BitsAllocated, made.FloatPixelData = 32, values[k].tobytes()

    dicom.write_series(tmp_path, dicom.ramp(3, 4, 5), change=change)
    volume = read(tmp_path)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], values.transpose(2, 1, 0), equal_nan=True)


def test_whole_values_stay_integers_of_two_bytes(tmp_path):
    dicom.write_series(tmp_path, dicom.ramp(3, 4, 5, dtype=np.uint16), intercept=-1024)
    assert read(tmp_path).array.dtype == np.int16
    dicom.write_series(tmp_path, dicom.ramp(3, 4, 5, dtype=np.uint16) + 65000, intercept=-1024)
    volume = read(tmp_path)
    assert volume.array.dtype == np.int32
    assert volume.array.max() == 65000 + 59 - 1024


def test_white_is_zero_is_inverted_and_said_but_not_for_values_with_a_unit(tmp_path):
    values = dicom.ramp(3, 4, 5, dtype=np.uint16)

    def inverted(made, _):
        made.PhotometricInterpretation, made.BitsStored, made.HighBit = "MONOCHROME1", 12, 11

    dicom.write_series(tmp_path / "mr", values, modality="MR", change=inverted)
    volume = read(tmp_path / "mr")
    assert np.array_equal(volume.array[0], 4095 - values.transpose(2, 1, 0))
    assert any("MONOCHROME1" in note for note in volume.meta.notes)
    dicom.write_series(tmp_path / "ct", values, change=inverted)
    assert np.array_equal(read(tmp_path / "ct").array[0], values.transpose(2, 1, 0))


def test_spacing_comes_from_positions_and_the_contradiction_is_said(tmp_path):
    dicom.write_series(
        tmp_path, dicom.ramp(5, 4, 4), step=2.5, change=lambda made, _: setattr(made, "SpacingBetweenSlices", "5")
    )
    volume = read(tmp_path)
    assert volume.spacing[2] == 2.5
    assert any("SpacingBetweenSlices says 5 mm" in note for note in volume.meta.notes)


def test_thirteen_slices_of_which_two_lie_in_one_place_are_not_thirteen(tmp_path):
    values = dicom.ramp(12, 4, 4)
    dicom.write_series(tmp_path, values, step=2.5)
    shutil.copy(tmp_path / "7.dcm", tmp_path / "7 again.dcm")
    with pytest.raises(DataError, match=r"7 again\.dcm.*duplicates=first"):
        read(tmp_path)
    volume = read(tmp_path, fixes=(("duplicates", "first"),))
    assert volume.spacing[2] == 2.5
    assert np.array_equal(volume.array[0], values.transpose(2, 1, 0))


def test_a_missing_slice_is_named_and_filled_on_request(tmp_path):
    values = dicom.ramp(6, 4, 4)
    paths = dicom.write_series(tmp_path, values)
    paths[3].unlink()
    with pytest.raises(DataError, match=r"between 3\.dcm and 5\.dcm.*4 mm apart, others 2 mm"):
        read(tmp_path)
    volume = read(tmp_path, fixes=(("gaps", "interpolate"),))
    assert volume.size[2] == 6
    assert np.array_equal(volume.array[0], values.transpose(2, 1, 0))  # a ramp is linear
    assert any("interpolated" in note for note in volume.meta.notes)


@pytest.mark.parametrize("tilt", [(0.0, 1.0), (1.0, -2.0)])
def test_a_tilted_gantry_is_resampled_and_said_or_refused(tmp_path, tilt):
    """Whole pixels a slice, so that the straight grid holds the very values, at the places that the slices state."""
    values = dicom.ramp(5, 6, 7) + 1
    values[:, 3, 3] = 0  # what lies outside of a slice takes its smallest value
    paths = dicom.write_series(tmp_path, values, tilt=tilt)
    volume = read(tmp_path)
    assert any("gantry" in note and "mm" in note for note in volume.meta.notes)
    for path in paths:
        made = dicom.pydicom.dcmread(path)
        for row, column in ((0, 0), (5, 6), (2, 3)):
            (index,) = np.argwhere(volume.array[0] == made.pixel_array[row, column])
            assert np.abs(in_patient(volume, index) - dicom.patient_place(made, row, column)).max() < 1e-3
    with pytest.raises(DataError, match="gantry"):
        read(tmp_path, fixes=(("tilt", "refuse"),))


def test_localisers_among_the_slices_are_left_out_and_said(tmp_path):
    values = dicom.ramp(4, 5, 6)
    dicom.write_series(tmp_path, values)
    scout = dicom.dataset(values[0], number=9, orientation=((1, 0, 0), (0, 0, -1)))
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dicom.save(scout, tmp_path / "0.dcm")
    volume = read(tmp_path)
    assert np.array_equal(volume.array[0], values.transpose(2, 1, 0))
    assert any("localiser" in note for note in volume.meta.notes)


def test_a_single_slice_is_2d_or_a_volume_as_the_run_wants(tmp_path):
    dicom.write_series(tmp_path, dicom.ramp(1, 5, 6), thickness=4.0)
    assert read(tmp_path, 2).size == (6, 5)
    assert read(tmp_path, 3).size == (6, 5, 1)
    assert read(tmp_path, 3).spacing[2] == 4.0


def test_a_picture_without_a_place_keeps_its_rows(tmp_path):
    made = dicom.dataset(dicom.ramp(1, 5, 6)[0], modality="CR")
    del made.ImagePositionPatient, made.ImageOrientationPatient, made.FrameOfReferenceUID
    volume = read_image([Source(dicom.save(made, tmp_path / "a.dcm"))])
    assert volume.size == (5, 6) and volume.affine is None and volume.unit == "mm"
    assert np.array_equal(volume.array, dicom.ramp(1, 5, 6))


def test_series_split_over_folders_is_one(tmp_path):
    values = dicom.ramp(6, 4, 4)
    for path in dicom.write_series(tmp_path / "all", values)[::2]:
        (tmp_path / "half").mkdir(exist_ok=True)
        path.rename(tmp_path / "half" / path.name)
    assert np.array_equal(read(tmp_path).array[0], values.transpose(2, 1, 0))


def test_the_series_is_chosen_by_rule_by_description_or_by_uid(tmp_path):
    dicom.write_series(tmp_path / "1", dicom.ramp(4, 4, 4), series="a", description="thin")
    dicom.write_series(tmp_path / "2", dicom.ramp(3, 4, 4), series="b", description="thick lung")
    (source,), said = series_in(tmp_path, Wishes())
    assert len(source.files) == 4
    assert "'thin', 4 x 4 x 4" in said and "'thick lung', 4 x 4 x 3" in said
    for name in ("thick lung", "LUNG", dicom.uid("s", "b")):
        (source,), _ = series_in(tmp_path, Wishes((name,)))
        assert len(source.files) == 3
    with pytest.raises(UsageError, match=r"no series 'bone'.*'thin'"):
        series_in(tmp_path, Wishes(("bone",)))
    with pytest.raises(UsageError, match="2 series of the description 'thi'"):
        series_in(tmp_path, Wishes(("thi",)))


def test_two_series_of_one_size_are_not_guessed_between(tmp_path):
    for name in "ab":
        dicom.write_series(tmp_path / name, dicom.ramp(4, 4, 4), series=name, description=name)
    with pytest.raises(UsageError, match=r"not clear.*--series"):
        series_in(tmp_path, Wishes())
    sources, _ = series_in(tmp_path, Wishes(("b", "a")))
    assert read_image(sources, 3).channels == 2


def test_memory_of_a_long_series_is_bounded(tmp_path):
    """Slice by slice into one array: at most two and a half times its size in 16 bits."""
    import tracemalloc

    values = np.random.default_rng(0).integers(0, 3000, (40, 64, 64)).astype(np.uint16)
    dicom.write_series(tmp_path, values, intercept=-1024)
    (source,), _ = series_in(tmp_path, Wishes())
    read_image([source], 3)  # headers are known, modules are there
    tracemalloc.start()
    volume = read_image([source], 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.array.nbytes == values.nbytes
    assert peak < 2.5 * values.nbytes
