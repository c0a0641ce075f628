"""What one DICOM file says of itself without its pixels: what it is, and where every frame lies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.formats.dicom.body_part import body_part_of
from ulna.data.formats.dicom.deflated import check_deflated
from ulna.data.formats.dicom.identity import NAMING, code_of, without_names
from ulna.data.formats.dicom.library import pydicom
from ulna.data.formats.source import AGAIN, data_error, file_stat
from ulna.errors import DataError

_DIRECTORY = "1.2.840.10008.1.3.10"
_KINDS = {  # SOP class -> kind
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # label map
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
    _DIRECTORY: "directory",
}
_PLAIN_IMAGES = {  # SOP classes whose files hold nothing but an image: CT, MR, PET, and the enhanced ones
    *(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "2.1", "4", "4.1", "128", "130")),
}
_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SeriesDescription",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "RTROIObservationsSequence",
    "ROIContourSequence",
    "StructureSetROISequence",
    "ModalityLUTSequence",
    "SegmentSequence",
    "SegmentationType",
    "SegmentsOverlap",
    "ReferencedImageSequence",
    "ReferencedInstanceSequence",
    "SourceImageSequence",
    *NAMING,  # to take them out of what is shown; a header keeps none of them but a digest
]
_NUMBERS = "write the element anew, or take the file out"


class Slice(NamedTuple):
    """Where a frame lies, in the patient's coordinates (LPS mm), and what its values mean; None: it does not say.

    Args:
        position: of the centre of the first pixel.
        orientation: directions along a row (to the next column), and along a column.
        spacing: between rows, between columns.
        slope, intercept: stored value -> value.
    """

    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    thickness: float | None = None
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True)
class Header:
    """One file.

    Args:
        kind: "image", "seg", "rtstruct", "directory" (a DICOMDIR) or "other".
        slices: one for every frame of an image.
        bits: that are stored of every value.
        references: UIDs of the series and of the instances that a label file belongs to.
        modality, body_part: words of letters alone that do not name the patient.
        patient: a digest of the patient's id, which tells whether two files are of one patient; empty without an id.
        shown: the description without words that name the patient: what may be printed of it.
        between: what the file calls the spacing between slices, which is often wrong; positions count.
        faults: what is wrong with an image, and what to do.
    """

    path: Path
    kind: str
    study: str = ""
    series: str = ""
    instance: str = ""
    frame_of_reference: str = ""
    modality: str = ""
    description: str = ""
    body_part: str = ""
    image_type: tuple[str, ...] = ()
    rows: int = 0
    columns: int = 0
    bits: int = 16
    signed: bool = False
    real: bool = False
    photometric: str = ""
    transfer_syntax: str = ""
    slices: tuple[Slice, ...] = ()
    between: float | None = None
    patient: str = ""
    shown: str = ""
    references: frozenset[str] = frozenset()
    faults: tuple[tuple[str, str], ...] = field(default=())


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes, whatever its name: with the preamble, or (old files) without it."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    if start[128:] == b"DICM":
        return True
    group, element, length = start[:2], start[2:4], start[4:8]
    explicit = length[:2].isalpha() and length[:2].isupper()
    short = len(start) == 132 and int.from_bytes(length, "little") < 1 << 10
    return group in (b"\x02\x00", b"\x08\x00") and element[1:] == b"\x00" and (explicit or short)


def read_header(path: Path) -> Header:
    """The header of a DICOM file.

    Raises:
        DataError: if the file is no DICOM, or its header is damaged.
    """
    file_stat(path)
    if not is_dicom(path):
        raise data_error(path, "is no DICOM file", "take it out, or export it again")
    dataset = read_dataset(path, pixels=False)
    try:
        return header_of(dataset, path)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # what it says may hold values of the header
        what = f"has elements that cannot be read ({type(error).__name__})"
        raise data_error(path, what, "write the file anew, or take it out") from None


def read_dataset(path: Path, *, pixels: bool, tags: Sequence[str] | None = _TAGS) -> Any:
    """The elements of a file, without the pixels only those named by `tags` (None: all).

    Raises:
        DataError: if its header is damaged.
    """
    library = pydicom()
    try:
        check_deflated(path)
        if pixels:
            return library.dcmread(path, force=True)
        return library.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags and list(tags))
    except (DataError, MemoryError):
        raise
    except Exception:  # what it says may hold values of the header
        raise data_error(path, "has a header that cannot be read: it is cut short or damaged", AGAIN) from None


def header_of(dataset: Any, path: Path) -> Header:
    """What a dataset says; what is wrong with an image stands in `faults`."""
    read = _Reader(dataset)
    meta = getattr(dataset, "file_meta", None)
    syntax = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    media = str(meta.get("MediaStorageSOPClassUID", "")) if meta is not None else ""
    sop_class, modality = read.text("SOPClassUID") or media, read.text("Modality").upper()
    rows, columns = read.whole("Rows"), read.whole("Columns")
    kind = _KINDS.get(sop_class) or _KINDS.get(media) or {"SEG": "seg", "RTSTRUCT": "rtstruct"}.get(modality)
    kind = kind or ("image" if rows or columns or "BitsAllocated" in dataset else "other")
    if kind == "other" and sop_class in _PLAIN_IMAGES and modality in ("", "CT", "MR", "PT"):
        raise data_error(path, "is an image whose header ends before it says how many rows it has", AGAIN)
    same: dict[str, Any] = {
        "path": path,
        "kind": kind,
        "study": read.text("StudyInstanceUID"),
        "series": read.text("SeriesInstanceUID"),
        "instance": read.text("SOPInstanceUID"),
        "frame_of_reference": read.text("FrameOfReferenceUID"),
        "modality": code_of(modality, dataset),
        "description": read.text("SeriesDescription"),
        "shown": without_names(read.text("SeriesDescription"), dataset),
        "transfer_syntax": syntax,
    }
    if kind != "image":
        return Header(
            **same, references=frozenset(_references(dataset)) if kind in ("seg", "rtstruct") else frozenset()
        )
    slices = tuple(read.slices())
    bits, allocated = read.whole("BitsStored"), read.whole("BitsAllocated")
    patient = read.text("PatientID")
    image: dict[str, Any] = {
        "patient": patient and hashlib.sha256(patient.encode()).hexdigest(),
        "body_part": body_part_of(dataset, read.text("BodyPartExamined")),
        "image_type": tuple(str(part).upper() for part in _values(dataset.get("ImageType"))),
        "rows": rows,
        "columns": columns,
        "bits": bits or allocated,
        "signed": read.whole("PixelRepresentation") == 1,
        "real": "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset,
        "photometric": read.text("PhotometricInterpretation").upper(),
        "slices": slices,
        "between": read.number("SpacingBetweenSlices", silent=True),
    }
    _check_pixels(read, dataset, rows, columns, allocated, bits, str(image["photometric"]))
    return Header(**same, **image, faults=tuple(dict.fromkeys(read.faults)))


def _check_pixels(
    read: _Reader, dataset: Any, rows: int, columns: int, allocated: int, bits: int, photometric: str
) -> None:
    """What cannot be the description of a grey image."""
    if rows < 1 or columns < 1:
        read.wrong(f"states {rows} rows and {columns} columns", "export it again")
    if read.whole("SamplesPerPixel", 1) != 1 or photometric.startswith(("RGB", "YBR")):
        read.wrong(
            f"is a colour picture ({photometric or 'several samples a pixel'})", "export its grey original, or a PNG"
        )
    elif photometric not in ("MONOCHROME1", "MONOCHROME2"):
        said = (
            f"has the photometric interpretation {photometric[:16]!r}"
            if photometric
            else "states no photometric interpretation"
        )
        read.wrong(said, "export it as MONOCHROME2")
    if allocated not in (8, 16, 32, 64):
        read.wrong(f"allocates {allocated} bits a pixel", "export it with 8, 16 or 32 bits")
    elif not 0 < (bits or allocated) <= allocated:
        read.wrong(f"stores {bits} bits in {allocated}", "export it again")


def _values(value: Any) -> tuple[Any, ...]:
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else (value,)


def _references(dataset: Any, depth: int = 0) -> Iterator[str]:
    """UIDs of series and instances anywhere in the sequences of a label file."""
    for element in dataset:
        if element.keyword in ("ReferencedSOPInstanceUID", "SeriesInstanceUID") and depth:
            yield str(element.value)
        elif element.VR == "SQ" and depth < 12:
            for item in element.value or ():
                yield from _references(item, depth + 1)


class _Reader:
    """Elements of a dataset as plain values; what is no such value is a fault."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.faults: list[tuple[str, str]] = []

    def wrong(self, what: str, remedy: str) -> None:
        self.faults.append((what, remedy))

    def text(self, keyword: str) -> str:
        try:
            return " ".join(str(part) for part in _values(self.dataset.get(keyword))).strip(" \0")
        except Exception:  # bytes that are no text of the stated kind
            return ""

    def whole(self, keyword: str, default: int = 0) -> int:
        try:
            value = self.dataset.get(keyword)
            return default if value in (None, "") else int(_values(value)[0])
        except Exception:
            self.wrong(f"has a {keyword} that is no number", _NUMBERS)
            return default

    def number(self, keyword: str, *, of: Any = None, silent: bool = False) -> float | None:
        found = self.numbers(keyword, 1, of=of, silent=silent)
        return None if found is None else found[0]

    def numbers(self, keyword: str, count: int, *, of: Any = None, silent: bool = False) -> tuple[float, ...] | None:
        """`count` finite numbers; None where the element is absent or empty, or (a fault) something else."""
        holder = self.dataset if of is None else of
        if holder is None or keyword not in holder:
            return None
        try:
            values = _values(holder.get(keyword))
            if not values:
                return None
            numbers = tuple(float(value) for value in values)
        except Exception:
            numbers = ()
        if len(numbers) == count and all(map(math.isfinite, numbers)):
            return numbers
        if not silent:
            wanted = "no finite number" if count == 1 else f"no {count} finite numbers"
            said = "numbers that are not finite (NaN)" if any(map(math.isnan, numbers)) else wanted
            self.wrong(f"has {said} in {keyword}", _NUMBERS)
        return None

    def slices(self) -> Iterator[Slice]:
        shared = _first(self.dataset.get("SharedFunctionalGroupsSequence"))
        frames = self.dataset.get("PerFrameFunctionalGroupsSequence") or ()
        count = max(self.whole("NumberOfFrames", 1), 1)
        if frames and len(frames) != count:
            self.wrong(f"says {count} frames and describes {len(frames)}", "export it again")
        if count > 1 << 20:
            self.wrong(f"says {count} frames", "export it again")
            return
        plain = not frames and shared is None
        for number in range(count):
            yield self._slice(shared, frames[number] if number < len(frames) else None, plain=plain)

    def _slice(self, shared: Any, frame: Any, *, plain: bool) -> Slice:
        def group(name: str) -> Any:
            if plain:
                return self.dataset
            own = _first(frame.get(name)) if frame is not None else None
            return own if own is not None else (_first(shared.get(name)) if shared is not None else None)

        measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
        spacing = self.numbers("PixelSpacing", 2, of=measures)
        if spacing is None and plain:
            spacing = self.numbers("ImagerPixelSpacing", 2)
        if spacing is not None and min(spacing) <= 0:
            self.wrong(f"has a PixelSpacing of {spacing[0]:g} x {spacing[1]:g} mm", _NUMBERS)
            spacing = None
        slope, intercept = self.number("RescaleSlope", of=values), self.number("RescaleIntercept", of=values)
        if slope == 0:
            self.wrong("has a RescaleSlope of 0, which makes all values one", _NUMBERS)
        if plain and self.dataset.get("ModalityLUTSequence"):
            self.wrong(
                "has a table of values (ModalityLUTSequence), which is not read", "export it with slope and intercept"
            )
        orientation = self.numbers("ImageOrientationPatient", 6, of=group("PlaneOrientationSequence"))
        if orientation is not None and not _perpendicular(orientation):
            self.wrong("has directions in ImageOrientationPatient that are no perpendicular unit vectors", _NUMBERS)
            orientation = None
        return Slice(
            self.numbers("ImagePositionPatient", 3, of=group("PlanePositionSequence")),
            orientation,
            spacing,
            self.number("SliceThickness", of=measures, silent=True),
            1.0 if slope is None else slope,
            0.0 if intercept is None else intercept,
        )


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _perpendicular(orientation: Sequence[float], tolerance: float = 1e-2) -> bool:
    row, column = orientation[:3], orientation[3:]
    lengths = [math.hypot(*row), math.hypot(*column)]
    skew = sum(a * b for a, b in zip(row, column, strict=True))
    return all(abs(length - 1) < tolerance for length in lengths) and abs(skew) < tolerance
