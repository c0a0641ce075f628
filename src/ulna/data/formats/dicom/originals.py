"""The datasets of a series as references for what is written beside it, with what the standard asks for filled in."""

from __future__ import annotations

from typing import Any, NamedTuple

from ulna.data.formats.dicom.header import read_dataset
from ulna.data.formats.dicom.library import pydicom
from ulna.data.formats.dicom.stack import Stack

_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4", "PT": "1.2.840.10008.5.1.4.1.1.128"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# of the patient and the study: a viewer finds a segmentation by them
IDENTITY = [
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
]
_SEXES = ("M", "F", "O")

_PLACE = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
    "InstanceNumber",
    "SeriesNumber",
]


class Originals(NamedTuple):
    """The files of a series, without pixels, in the order of its slices.

    Args:
        datasets: one for every file.
        missing: what they do not state and what stands in its place.
    """

    datasets: list[Any]
    missing: tuple[str, ...]


def originals_of(stack: Stack) -> Originals:
    """Read the headers of a series anew, whole, and fill in what is empty."""
    library = pydicom()
    datasets: list[Any] = []
    missing: dict[str, None] = {}
    seed = [str(frame.header.path) for frame in stack.frames]
    made = {key: library.uid.generate_uid(entropy_srcs=[key, *seed]) for key in ("study", "series", "frame")}
    for header in dict.fromkeys(frame.header for frame in stack.frames):
        whole = read_dataset(header.path, pixels=False, tags=None)
        dataset = library.dataset.Dataset()
        for keyword in (*_PLACE, *IDENTITY):
            _copy(whole, dataset, keyword)
        dataset.SpecificCharacterSet = "ISO_IR 192"  # what was read is text by now, whatever the file was written in
        wanted = {
            "SOPClassUID": _CLASSES.get(header.modality, _SECONDARY_CAPTURE),
            "SOPInstanceUID": library.uid.generate_uid(entropy_srcs=[str(header.path)]),
            "StudyInstanceUID": made["study"],
            "SeriesInstanceUID": made["series"],
            **({"FrameOfReferenceUID": made["frame"]} if stack.affine is not None else {}),
        }
        for keyword, value in wanted.items():
            if not _valid_uid(dataset, keyword):
                setattr(dataset, keyword, value)
                missing[keyword] = None
        for keyword in IDENTITY:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
        if not dataset.get("Modality"):
            dataset.Modality = "OT"
        if "ImageOrientationPatient" in dataset and not dataset.get("SliceThickness") and stack.spacing is not None:
            dataset.SliceThickness = f"{stack.spacing[2]:.8g}"
        dataset.file_meta = library.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = library.uid.ExplicitVRLittleEndian
        datasets.append(dataset)
    told = tuple(f"its files state no {keyword}, a new one stands in its place" for keyword in missing)
    return Originals(datasets, told)


def _valid_uid(dataset: Any, keyword: str) -> bool:
    value = str(dataset.get(keyword) or "")
    return bool(value) and len(value) <= 64 and value.replace(".", "").isdigit()


def _copy(source: Any, target: Any, keyword: str) -> None:
    """An element, unless its value is not what its kind may hold (a date that is none, for example)."""
    try:
        if keyword in source and source.get(keyword) is not None:
            value = source.get(keyword)
            if keyword == "PatientSex" and value not in _SEXES:
                return
            if keyword in IDENTITY:
                setattr(target, keyword, str(value))  # an odd value raises here, and not when a file is written
            else:
                target[keyword] = source[keyword]
    except Exception:
        return
