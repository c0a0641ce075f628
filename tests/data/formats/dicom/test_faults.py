"""Planted DICOM faults: each is named with its file and a way out, or repaired and said; none is silent, none a traceback.

No message holds what the headers say of a person.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import dicom_series as dicom
from ulna.cli.main import run
from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.read import read_image
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError

VALUES = dicom.ramp(4, 5, 6)


def element(keyword, value, only=None):
    """A series in which an element of every slice (or of one) has that value; None takes it out."""

    def plant(folder: Path) -> None:
        def change(made, k):
            if only is not None and k != only:
                return
            if value is None:
                delattr(made, keyword)
            else:
                setattr(made, keyword, value)

        with dicom.pydicom.config.disable_value_validation():
            dicom.write_series(folder, VALUES, change=change)

    return plant


def raw(keyword, text, only=1):
    """An element whose bytes are no value of its kind."""

    def plant(folder: Path) -> None:
        for k, path in enumerate(dicom.write_series(folder, VALUES)):
            if only is None or k == only:
                made = dicom.pydicom.dcmread(path)
                tag = dicom.pydicom.datadict.tag_for_keyword(keyword)
                vr = dicom.pydicom.datadict.dictionary_VR(tag)
                made[tag] = dicom.pydicom.dataelem.RawDataElement(tag, vr, len(text), text.encode(), 0, False, True)
                dicom.save(made, path)

    return plant


def file_of(make):
    """A sound series of which one file is changed by its bytes."""

    def plant(folder: Path) -> None:
        paths = dicom.write_series(folder, VALUES)
        make(paths[1])

    return plant


def truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:700])


def emptied(path):
    path.write_bytes(b"")


def text_file(path):
    path.write_text(f"not an image {dicom.CANARY}" * 20)


def picture(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))


def twice(path):
    shutil.copy(path, path.with_name("copy.dcm"))


def removed(path):
    path.unlink()


def other(**kwargs):
    """A fifth slice in the same series that does not fit: beside the four, one of another kind."""

    def plant(folder: Path) -> None:
        dicom.write_series(folder, VALUES)
        values = kwargs.pop("values", VALUES[0]) if "values" in kwargs else VALUES[0]
        made = dicom.dataset(values, number=5, position=kwargs.pop("position", (-10, 5, 38)), **kwargs)
        dicom.save(made, folder / "5.dcm")
        kwargs["values"], kwargs["position"] = values, (-10, 5, 38)

    return plant


def foreign_frame(folder):
    dicom.write_series(
        folder, VALUES, change=lambda made, k: k == 2 and setattr(made, "FrameOfReferenceUID", dicom.uid("else"))
    )


def colour(folder):
    def change(made, _):
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
        made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
        made.PixelData = bytes(3 * 30)

    dicom.write_series(folder, VALUES, change=change)


def packed_by_nothing(folder):
    for path in dicom.write_series(folder, VALUES):
        made = dicom.pydicom.dcmread(path)
        made.PixelData = dicom.pydicom.encaps.encapsulate([b"\xff\xd8" + bytes(50)])
        made["PixelData"].is_undefined_length = True
        dicom.save(made, path, syntax="1.2.840.10008.1.2.4.70")


def damaged_packing(folder):
    for path in dicom.write_series(folder, VALUES):
        made = dicom.pydicom.dcmread(path)
        made.PixelData = dicom.pydicom.encaps.encapsulate([bytes(50)])
        made["PixelData"].is_undefined_length = True
        dicom.save(made, path, syntax="1.2.840.10008.1.2.5")


def no_pixels(folder):
    dicom.write_series(folder, VALUES, change=lambda made, _: delattr(made, "PixelData"))


def tables(folder):
    def change(made, _):
        item = dicom.pydicom.Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "HU", bytes(4)
        made.ModalityLUTSequence = [item]

    dicom.write_series(folder, VALUES, change=change)


def label_file(modality, sop_class):
    def plant(folder):
        made = dicom.dataset(VALUES[0])
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = sop_class
        made.Modality = modality
        dicom.save(made, folder / "labels.dcm")

    return plant


def index_file(folder):
    made = dicom.dataset(VALUES[0])
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated"):
        delattr(made, keyword)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    dicom.save(made, folder / "DICOMDIR")


def report(folder):
    made = dicom.dataset(VALUES[0], modality="SR")
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored"):
        delattr(made, keyword)
    dicom.save(made, folder / "report.dcm")


def time_points(folder):
    for number in range(3):
        dicom.write_series(folder, VALUES, name=f"{number}-{{}}.dcm")


def uneven(folder):
    def change(made, k):
        made.ImagePositionPatient = ["-10", "5", dicom.text(30 + [0, 2, 4.6, 7][k])]

    dicom.write_series(folder, VALUES, change=change)


def enhanced(change):
    def plant(folder):
        made = dicom.multiframe(VALUES)
        change(made)
        dicom.save(made, folder / "enhanced.dcm")

    return plant


def fewer_frames(made):
    made.PerFrameFunctionalGroupsSequence = made.PerFrameFunctionalGroupsSequence[:3]


def unplaced_frames(made):
    for item in made.PerFrameFunctionalGroupsSequence:
        del item.PlanePositionSequence


def double_frames(made):
    position = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence = position


def cut_frames(made):
    made.PixelData = made.PixelData[:-30]


def time_points_in_frames(folder):
    dicom.save(dicom.multiframe(VALUES, order=[0, 1, 2, 3, 0, 1, 2, 3]), folder / "enhanced.dcm")


def frames_among_slices(folder):
    dicom.write_series(folder, VALUES)
    dicom.save(dicom.multiframe(VALUES), folder / "enhanced.dcm")


def cut_jpeg_2000(folder):
    for path in dicom.write_series(folder, dicom.ramp(2, 64, 72)):
        made = dicom.pydicom.dcmread(path)
        made.compress("1.2.840.10008.1.2.4.90")
        stream = dicom.pydicom.encaps.get_frame(made.PixelData, 0, number_of_frames=1)
        made.PixelData = dicom.pydicom.encaps.encapsulate([stream[: len(stream) // 2]])
        made["PixelData"].is_undefined_length = True
        dicom.save(made, path, syntax="1.2.840.10008.1.2.4.90")


def plain_multiframe(folder):
    made = dicom.multiframe(VALUES)
    del made.PerFrameFunctionalGroupsSequence, made.SharedFunctionalGroupsSequence
    dicom.save(made, folder / "film.dcm")


FAULTS = {
    "slope is NaN": (raw("RescaleSlope", "nan "), r"2\.dcm.*NaN.*RescaleSlope"),
    "slope is 0": (element("RescaleSlope", "0"), r"\.dcm.*RescaleSlope of 0"),
    "slope has two values": (element("RescaleSlope", ["1", "2"]), r"1\.dcm.*no finite number in RescaleSlope"),
    "slope is text": (raw("RescaleSlope", "steep "), r"2\.dcm.*RescaleSlope"),
    "intercept is infinite": (raw("RescaleIntercept", "inf "), r"2\.dcm.*RescaleIntercept"),
    "intercept is NaN": (raw("RescaleIntercept", "nan "), r"2\.dcm.*RescaleIntercept"),
    "position is NaN": (raw("ImagePositionPatient", r"0\nan\0 "), r"2\.dcm.*NaN.*ImagePositionPatient"),
    "position is text": (raw("ImagePositionPatient", r"a\b\c "), r"2\.dcm.*ImagePositionPatient"),
    "position has two numbers": (raw("ImagePositionPatient", r"1\2 "), r"2\.dcm.*no 3 finite numbers.*ImagePositionPatient"),
    "a position is missing": (element("ImagePositionPatient", None, only=2), r"3\.dcm states no ImagePositionPatient"),
    "all positions are missing": (element("ImagePositionPatient", None), r"states no ImagePositionPatient"),
    "orientation is missing": (element("ImageOrientationPatient", None), r"states no ImageOrientationPatient"),
    "orientation of one is missing": (element("ImageOrientationPatient", None, only=0), r"orientations.*1\.dcm"),
    "orientation is zero": (element("ImageOrientationPatient", ["0"] * 6), r"perpendicular unit vectors"),
    "orientation is skew": (element("ImageOrientationPatient", ["1", "0", "0", "0.7", "0.7", "0"]), r"perpendicular unit vectors"),
    "orientation is NaN": (raw("ImageOrientationPatient", r"1\0\0\0\nan\0"), r"2\.dcm.*NaN.*ImageOrientationPatient"),
    "pixel spacing is missing": (element("PixelSpacing", None), r"states no PixelSpacing"),
    "pixel spacing is 0": (element("PixelSpacing", ["0", "1"]), r"PixelSpacing of 0 x 1 mm"),
    "pixel spacing is negative": (element("PixelSpacing", ["1", "-1"]), r"PixelSpacing of 1 x -1 mm"),
    "pixel spacing is one number": (raw("PixelSpacing", "1 "), r"2\.dcm.*no 2 finite numbers.*PixelSpacing"),
    "pixel spacing of one differs": (element("PixelSpacing", ["2", "2"], only=3), r"several pixel spacings.*4\.dcm.*mixed=largest"),
    "one slice has another orientation": (
        element("ImageOrientationPatient", ["1", "0", "0", "0", "0", "-1"], only=1), r"several orientations.*2\.dcm"),
    "one slice has another size": (other(values=dicom.ramp(1, 7, 6)[0]), r"several sizes.*5\.dcm"),
    "one slice is of another modality": (other(modality="MR"), r"several modalities.*5\.dcm"),
    "one slice has another frame of reference": (foreign_frame, r"several frames of reference.*3\.dcm"),
    "one slice is inverted": (element("PhotometricInterpretation", "MONOCHROME1", only=2), r"several photometric.*3\.dcm"),
    "rows are 0": (element("Rows", 0), r"0 rows"),
    "rows are missing": (element("Rows", None), r"0 rows"),
    "colour": (colour, r"colour picture \(RGB\)"),
    "YBR": (element("PhotometricInterpretation", "YBR_FULL"), r"colour picture \(YBR_FULL\)"),
    "palette": (element("PhotometricInterpretation", "PALETTE COLOR"), r"photometric interpretation 'PALETTE COLOR'"),
    "no photometric interpretation": (element("PhotometricInterpretation", None), r"no photometric interpretation"),
    "one bit a pixel": (element("BitsAllocated", 1), r"allocates 1 bits"),
    "12 bits allocated": (element("BitsAllocated", 12), r"allocates 12 bits"),
    "more bits stored than allocated": (element("BitsStored", 20), r"stores 20 bits in 16"),
    "a table of values": (tables, r"ModalityLUTSequence"),
    "a missing slice": (file_of(removed), r"misses slices between 1\.dcm and 3\.dcm"),
    "a slice twice": (file_of(twice), r"another lies already.*copy\.dcm.*duplicates=first"),
    "three time points in one series": (time_points, r"3 slices at each of 4 places"),
    "uneven distances": (uneven, r"distances from 2 to 2\.6 mm"),
    "pixels cut short": (file_of(truncated), r"2\.dcm.*cut short"),
    "no pixels": (no_pixels, r"1\.dcm.*holds no pixels"),
    "cut in the header": (file_of(cut_in_the_header), r"2\.dcm|between 1\.dcm and 3\.dcm"),
    "an empty file": (file_of(emptied), r"2\.dcm.*(empty|no DICOM)|between 1\.dcm and 3\.dcm"),
    "a text named .dcm": (file_of(text_file), r"2\.dcm.*no DICOM|between 1\.dcm and 3\.dcm"),
    "a picture named .dcm": (file_of(picture), r"2\.dcm.*no DICOM|between 1\.dcm and 3\.dcm"),
    "packed by nothing that is here": (packed_by_nothing, r"JPEG Lossless.*nothing.*unpacks.*gdcm"),
    "packed pixels are damaged": (damaged_packing, r"cannot be unpacked \(RLE Lossless"),
    "JPEG 2000 is cut short": (cut_jpeg_2000, r"cannot be unpacked \(JPEG 2000"),
    "a SEG in place of an image": (label_file("SEG", "1.2.840.10008.5.1.4.1.1.66.4"), r"segmentations \(SEG\) and no image"),
    "an RTSTRUCT in place of an image": (label_file("RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"), r"structures \(RTSTRUCT\) and no"),
    "an index alone": (index_file, r"no DICOM image"),
    "a report alone": (report, r"no DICOM image"),
    "frames that are not described": (enhanced(fewer_frames), r"4 frames and describes 3"),
    "frames without a place": (enhanced(unplaced_frames), r"frame 1\) states no ImagePositionPatient"),
    "two frames at one place": (enhanced(double_frames), r"another lies already.*frame"),
    "pixels of frames cut short": (enhanced(cut_frames), r"enhanced\.dcm.*cut short"),
    "frames of two time points": (time_points_in_frames, r"2 slices at each of 4 places.*frame"),
    "an enhanced file among slices": (frames_among_slices, r"2 slices at each of 4 places.*enhanced\.dcm"),
    "a film without places": (plain_multiframe, r"states no ImagePositionPatient"),
}  # fmt: skip

NO_IMAGE = ("an index alone", "a report alone", "a SEG in place of an image", "an RTSTRUCT in place of an image")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(tmp_path, fault):
    plant, wanted = FAULTS[fault]
    folder = tmp_path / "series"
    plant(folder)
    with pytest.raises(UsageError, match=f"(?s){wanted}") as error:
        sources, _ = series_in(folder, Wishes())
        read_image(sources, 3)
    told = str(error.value)
    assert str(folder) in told
    assert dicom.CANARY not in told
    assert "\n" not in told  # one sentence
    assert ";" in told  # and a way out


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", ["{}.dcm", "IM{:04}", "1.2.840.{}"])
@pytest.mark.parametrize("damage", [truncated, cut_in_the_header, emptied, text_file, picture])
def test_a_damaged_file_at_an_end_of_the_series_is_named_too(tmp_path, damage, name, place):
    """Without it the other slices look like a whole series; many archives name their files without an ending."""
    path = dicom.write_series(tmp_path / "tree" / "case", VALUES, name=name)[place]
    damage(path)
    with pytest.raises(UsageError, match=rf"{path.name}.*;") as error:
        sources, _ = series_in(tmp_path / "tree" / "case", Wishes())
        read_image(sources, 3)
    assert dicom.CANARY not in str(error.value)
    with pytest.raises(UsageError, match=path.name):
        Dataset.from_folder(tmp_path / "tree", need_labels=False).cases[0].read_image()


def test_there_are_enough_of_them():
    assert len(FAULTS) >= 40


def test_check_names_every_one_of_a_tree_at_once_and_ends_with_2(tmp_path, capsys):
    """As a person meets them: all in one download, each with its folder, its reason and a remedy; no traceback."""
    places = {}
    for number, (fault, (plant, _)) in enumerate(FAULTS.items()):
        places[fault] = f"f{number:02}"
        plant(tmp_path / places[fault])
        for path in (tmp_path / places[fault]).iterdir():  # each a study of its own
            apart(path, fault)
    dicom.write_series(tmp_path / "good", VALUES, series="good", study="good")
    assert run(["check", str(tmp_path), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    for fault, (_, wanted) in FAULTS.items():
        own = [
            one for one in told["problems"] if f"/{places[fault]}" in one["file"] and "has no SEG" not in one["what"]
        ]
        notes = [note for note in told["notes"] if note.startswith(places[fault])]
        assert own or notes, fault
        assert all(one["remedy"] for one in own)
        if fault not in NO_IMAGE:
            assert re.search(
                f"(?s){wanted}", " ".join(f"{one['file']}: {one['what']}; {one['remedy']}" for one in own)
            ), own
    assert not any("/good" in one["file"] and "has no SEG" not in one["what"] for one in told["problems"])
    assert dicom.CANARY not in json.dumps(told)


def apart(path, fault):
    """Give a file of a fault a study of its own, where its header can be read at all."""
    try:
        made = dicom.pydicom.dcmread(path)
        made.StudyInstanceUID, made.SeriesInstanceUID = dicom.uid("study", fault), dicom.uid("series", fault)
        with dicom.pydicom.config.disable_value_validation():
            made.save_as(path, enforce_file_format=False)
    except Exception:  # a damaged one stays as it is
        return


def test_other_files_beside_slices_without_an_ending_are_no_fault(tmp_path):
    dicom.write_series(tmp_path, VALUES, name="IM{:04}")
    for name in ("README", "IM0001.txt", "VERSION"):
        (tmp_path / name).write_text("x")
    sources, _ = series_in(tmp_path, Wishes())
    assert read_image(sources, 3).size[2] == 4


@pytest.mark.parametrize("fault", FAULTS)
def test_the_data_set_of_a_planted_fault_names_it_too(tmp_path, fault):
    """Beside a sound case: what is wrong is told by the folder's scan, or when the case is read; the sound case is read."""
    FAULTS[fault][0](tmp_path / "bad")
    dicom.write_series(tmp_path / "good", VALUES, series="good", study="good")
    try:
        dataset, problems = Dataset.scan(tmp_path, need_labels=False)
    except UsageError as error:
        assert dicom.CANARY not in str(error)
        return
    told = [str(problem) for problem in problems]
    for case in dataset.cases:
        try:
            case.read_image()
        except UsageError as error:
            told.append(str(error))
    assert "good" in [case.id for case in dataset.cases]
    assert told or (fault in NO_IMAGE and any(note.startswith("bad") for note in dataset.notes))
    assert not any(dicom.CANARY in text for text in [*told, *dataset.notes])


@pytest.mark.parametrize(
    ("fault", "fixes", "size"),
    [
        ("a slice twice", {"duplicates": "first"}, 4),
        ("a missing slice", {"gaps": "interpolate"}, 4),
        ("uneven distances", {"gaps": "interpolate"}, 4),
        ("three time points in one series", {"duplicates": "first"}, 4),
        ("one slice has another size", {"mixed": "largest"}, 4),
        ("pixel spacing of one differs", {"mixed": "largest"}, 3),
    ],
)
def test_an_explicit_option_repairs_and_says_so(tmp_path, fault, fixes, size):
    FAULTS[fault][0](tmp_path)
    sources, _ = series_in(tmp_path, Wishes(fixes=tuple(fixes.items())))
    volume = read_image(sources, 3)
    assert volume.size[2] == size
    assert volume.meta.notes


def test_the_command_line_ends_with_2_and_no_traceback(tmp_path, capsys):
    FAULTS["slope is NaN"][0](tmp_path / "case")
    assert run(["check", str(tmp_path)]) == 2
    out = capsys.readouterr()
    assert "RescaleSlope" in out.out + out.err
    assert dicom.CANARY not in out.out + out.err
    assert "Traceback" not in out.out + out.err


@pytest.mark.parametrize("given", ["tilt", "tilt=bend", "lean=refuse"])
def test_a_wrong_option_names_the_valid_ones(tmp_path, given):
    dicom.write_series(tmp_path / "case", VALUES)
    assert run(["check", str(tmp_path), "--dicom", given]) == 2


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    from ulna.data.formats.dicom import finding

    dicom.write_series(tmp_path / "case", np.ones((2, 3, 4), np.int16))
    finding._header.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match=r"pip install 'ulna\[dicom\]'"):
        Dataset.scan(tmp_path, need_labels=False)
