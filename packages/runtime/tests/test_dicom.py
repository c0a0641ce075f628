"""DICOM series in and SEGs out, with pydicom alone: as ulna reads them, and where the standard says that they lie."""

import itertools
import sys

import numpy as np
import pytest

from packages.runtime.tests.conftest import plan_for
from tests.data.formats.dicom.test_masks_out import marked, same_places, seg_places
from tests.data.formats.dicom.test_real_series import FOLDERS, ROOT
from tests.data.formats.dicom.test_series import SHAPES
from tests.dicom_series import CANARY, multiframe, pydicom, save, write_series
from ulna.data.formats.dicom.planes import to_grid
from ulna.data.formats.dicom.seg import read_seg
from ulna.data.formats.dicom.series import read_series as ulna_series
from ulna.data.formats.source import Series
from ulna_runtime import UsageError, load
from ulna_runtime.cli import run as command
from ulna_runtime.dicom import is_dicom, read_series
from ulna_runtime.files import write_mask
from ulna_runtime.seg import About

ABOUT = About(("organ", "tumour"), "unet")


def of_ulna(folder, dims):
    return ulna_series(folder, Series(tuple(filter(is_dicom, sorted(folder.iterdir())))), dims)


def in_ulna(seg, volume, names=ABOUT.names):
    """A SEG as ulna reads it onto its series: the label map."""
    stack = volume.meta.stored.stack
    frames = np.zeros((len(stack.frames), stack.frames[0].header.rows, stack.frames[0].header.columns), np.uint8)
    found = {}
    for part in read_seg(seg, stack, lambda _: True, {}):
        frames[part.frame][part.mask] = part.named.number
        found[part.named.number] = part.named.label
    assert set(found.items()) <= set(enumerate(names, start=1))
    grid = to_grid(frames, stack)
    return grid if volume.spatial_dims == 3 else grid[..., 0]


def series(folder, count=4, **changes):
    values = np.random.default_rng(1).integers(0, 900, (count, 6, 5)).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    write_series(folder, values, **changes)
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        {"slope": 2.0, "intercept": -1024.0},
        {"intercept": -1000.0},
        {"slope": 0.37, "intercept": 0.5},
        {"reverse": True, "modality": "MR"},
        {"change": lambda made, k: setattr(made, "PhotometricInterpretation", "MONOCHROME1"), "modality": "MR"},
        {"change": lambda made, k: setattr(made, "BitsStored", 8)},
    ],
    ids=["halves", "negative", "fractions", "reversed MR", "inverted MR", "eight bits"],
)
def test_values_of_a_series_are_those_of_ulna(kind, tmp_path):
    folder = series(tmp_path / "a", **kind)
    (folder / "notes.txt").write_text("no DICOM")
    ours, theirs = of_ulna(folder, 3), read_series(folder, 3)
    assert np.array_equal(ours.array, theirs.array)
    assert len(np.unique(ours.array)) > 50


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_of_a_marker_lies_on_the_marker_in_48_orientations(tmp_path, shape):
    """Read again from the bits, by the equation of the standard."""
    for number, (orientation, reverse) in enumerate(itertools.product(range(24), (False, True))):
        if number % 5 and shape != "one slice":
            continue
        folder = tmp_path / str(number)
        _, places = marked(folder, shape, orientation, reverse)
        volume = read_series(folder, 3)
        mask = (volume.array[0] == 100).astype(np.uint8)
        found = seg_places(write_mask(tmp_path / f"{number}.dcm", mask, volume, About(("marker",), "unet")))
        assert len(found) == len(places)
        assert same_places(found, places)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_real_series_are_those_of_ulna(name, tmp_path):
    if ROOT is None:
        pytest.skip("the real DICOM series are not on this machine")
    folder = ROOT / name / ("ct" if name == "ct_3slice_seg" else "")
    theirs = read_series(folder, 3)
    images = [path for path in sorted(folder.iterdir()) if not path.name.startswith("rt")]
    ours = ulna_series(folder, Series(tuple(images)), 3)
    assert np.array_equal(ours.array, theirs.array)
    assert ours.spacing == theirs.spacing
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-9)
    values = theirs.array[0]
    mask = (values > np.median(values)).astype(np.uint8)
    assert np.array_equal(in_ulna(write_mask(tmp_path / "mask", mask, theirs, ABOUT), ours), mask)


def test_a_seg_names_its_structures_its_series_and_its_patient(tmp_path):
    hd = pytest.importorskip("highdicom")
    folder = series(tmp_path / "scan")
    volume = read_series(folder, 3)
    mask = np.zeros((2, *volume.size), np.uint8)
    mask[0, 1:4, 2:5, 1:3] = mask[1, 3:5, 4:6, 2:4] = 1  # they overlap
    path = write_mask(tmp_path / "scan.dcm", mask, volume, ABOUT)
    made = hd.seg.segread(path)
    assert [one.SegmentLabel for one in made.SegmentSequence] == ["organ", "tumour"]
    assert made.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "organ"
    first = pydicom.dcmread(sorted(folder.iterdir())[0])
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "AccessionNumber"):
        assert made[keyword].value == first[keyword].value
    assert made.SeriesInstanceUID != first.SeriesInstanceUID
    uids = [pydicom.dcmread(one).SOPInstanceUID for one in sorted(folder.iterdir())]
    pixels = made.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    assert np.array_equal(pixels.transpose(3, 2, 1, 0), mask)
    assert made.NumberOfFrames == 4  # no empty ones
    geometry = made.get_volume_geometry()
    np.testing.assert_allclose(geometry.spacing, volume.spacing[::-1], atol=1e-6)


def test_an_empty_mask_and_a_single_slice_make_a_seg(tmp_path):
    folder = series(tmp_path / "scan")
    volume = read_series(folder, 3)
    empty = write_mask(tmp_path / "empty", np.zeros(volume.size, np.uint8), volume, ABOUT)
    assert not in_ulna(empty, of_ulna(folder, 3)).any()
    flat = series(tmp_path / "flat", count=1)
    for dims in (2, 3):
        volume = read_series(flat, dims)
        mask = (volume.array[0] > 400).astype(np.uint8)
        made = write_mask(tmp_path / f"flat{dims}", mask, volume, ABOUT)
        assert np.array_equal(in_ulna(made, of_ulna(flat, dims)), mask)


def other_series(folder):
    series(folder / "b", series="b")
    for path in (folder / "b").iterdir():
        path.rename(folder / f"b{path.name}")
    (folder / "b").rmdir()


def drop(keyword):
    def change(made, k):
        delattr(made, keyword)

    return change


def put(keyword, value, of=None):
    def change(made, k):
        if of is None or k == of:
            setattr(made, keyword, value)

    return change


ODD = {
    "several series": (lambda f: (series(f), other_series(f)), "holds 2 series"),
    "a tilted gantry": (lambda f: series(f, tilt=(0.0, 0.7)), "shifted against each other"),
    "a missing slice": (lambda f: (series(f, count=6), (f / "3.dcm").unlink()), "some are missing or there twice"),
    "a slice twice": (lambda f: (series(f), (f / "x").write_bytes((f / "2.dcm").read_bytes())), "there twice"),
    "several sizes": (
        lambda f: (series(f), write_series(f, np.zeros((1, 7, 5), np.int16), origin=(-10, 5, 38), name="x.dcm")),
        "1.dcm and x.dcm differ in size",
    ),
    "colour": (lambda f: series(f, change=put("PhotometricInterpretation", "RGB")), "no grey image"),
    "no position": (lambda f: series(f, change=drop("ImagePositionPatient")), "states no ImagePositionPatient"),
    "no spacing": (lambda f: series(f, change=drop("PixelSpacing")), "states no PixelSpacing"),
    "no pixels": (lambda f: series(f, change=drop("PixelData")), "holds no whole numbers"),
    "slope": (lambda f: series(f, slope=0.0), "RescaleSlope or RescaleIntercept that cannot be"),
    "directions": (
        lambda f: series(f, change=put("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"])),
        "no perpendicular unit vectors",
    ),
    "several frames": (
        lambda f: (f.mkdir(), save(multiframe(np.zeros((3, 6, 5), np.int16)), f / "a.dcm")),
        "holds several frames",
    ),
    "labels alone": (lambda f: series(f, change=put("Modality", "SEG")), "holds no DICOM image"),
    "a file that is none": (
        lambda f: (series(f), (f / "5.dcm").write_bytes(bytes(200))),
        r"5\.dcm: is no DICOM file; take it out",
    ),
    "cut short": (
        lambda f: (series(f), (f / "2.dcm").write_bytes((f / "2.dcm").read_bytes()[:-20])),
        r"2\.dcm: is damaged",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_about_a_series_is_refused_and_quotes_nobody(name, tmp_path):
    make, match = ODD[name]
    make(tmp_path / "scan")
    with pytest.raises(UsageError, match=match) as told:
        read_series(tmp_path / "scan", 3)
    assert str(told.value).startswith(str(tmp_path))
    assert CANARY not in str(told.value)


def test_an_index_and_labels_beside_a_series_are_passed_over(tmp_path):
    folder = series(tmp_path / "scan")
    expected = read_series(folder, 3).array
    index = pydicom.dcmread(folder / "1.dcm")
    index.file_meta.MediaStorageSOPClassUID = index.SOPClassUID = "1.2.840.10008.1.3.10"
    index.save_as(folder / "DICOMDIR", enforce_file_format=True)
    write_mask(folder / "mask.dcm", (expected[0] > 400).astype(np.uint8), read_series(folder, 3), ABOUT)
    (folder / "._1.dcm").write_bytes(b"of a Macintosh")
    assert np.array_equal(read_series(folder, 3).array, expected)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    folder = series(tmp_path / "scan")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"scan needs pydicom, .* 'ulna-runtime\[dicom\]'"):
        read_series(folder, 3)


def test_a_folder_of_series_on_the_command_line(deep, tmp_path, capsys):
    plan = plan_for(3, orientation="RAS", spacing=(1.0, 1.0, 2.0), unit="mm")
    file = deep.write(tmp_path / "a.ulna", plan)
    for name in ("one", "two"):
        series(tmp_path / "scans" / name, count=9)
    words = ["predict", str(file), str(tmp_path / "scans"), "--out"]
    assert command([*words, str(tmp_path / "masks")]) == 0
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["one.dcm", "two.dcm"]
    assert command(["predict", str(file), str(tmp_path / "scans" / "one"), "--out", str(tmp_path / "single")]) == 0
    assert [path.name for path in (tmp_path / "single").iterdir()] == ["one.dcm"]
    assert (
        command(["predict", str(file), str(tmp_path / "scans" / "one"), "--out", str(tmp_path / "scans" / "one" / "m")])
        == 2
    )
    assert "lies in the folder of a DICOM series" in capsys.readouterr().err
    folder = tmp_path / "scans" / "one"
    expected = load(file)(folder).mask
    assert len(np.unique(expected)) > 1
    assert np.array_equal(in_ulna(tmp_path / "masks" / "one.dcm", of_ulna(folder, 3), ("x", "y")), expected)
