"""A mask as a DICOM SEG beside its series: binary, a frame for every slice that a structure is on (PS3.3 A.51)."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.dicom import IDENTITY, Series, Slice
from ulna_runtime.errors import needed
from ulna_runtime.volume import Volume

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = "1.2.840.10008.1.2.1"
SERIES_NUMBER = 9300
OWN_SCHEME = "99ULNA"  # of codes for names of structures
CATEGORY = ("85756007", "SCT", "Tissue")
DERIVED = ("113076", "DCM", "Segmentation")
PURPOSE = ("121322", "DCM", "Source image for image processing operation")
FAMILY = ("123110", "DCM", "Artificial Intelligence")


class About(NamedTuple):
    """What a file says of a mask.

    Args:
        names: of the structures, in the order of their values.
        model: what made it.
    """

    names: tuple[str, ...]
    model: str


def write_seg(path: Path, mask: NDArray[Any], like: Volume, about: About) -> None:
    """Write a SEG.

    Args:
        path: the file.
        mask: (*S) of class indices, or (K, *S) of overlapping classes, on the grid of the series.
        like: the series.
        about: names of the structures and of the model.
    """
    with needed("pydicom", "dicom", str(path)):
        import pydicom
    series: Any = like.stored
    count = len(about.names)
    maps = list(mask) if mask.ndim > len(like.size) else [mask == number for number in range(1, count + 1)]
    segments = [np.reshape(one != 0, (*like.size, 1)[:3]).transpose(2, 1, 0) for one in maps]  # (k, rows, columns) each
    held = [(number, int(k)) for number, one in enumerate(segments) for k in np.flatnonzero(one.any(axis=(1, 2)))]
    held = held or [(0, 0)]  # a file has at least one frame
    frames = np.stack([segments[number][k] for number, k in held])
    made = _file(pydicom, series, about)
    made.NumberOfFrames = len(held)
    made.SegmentsOverlap = "NO" if mask.ndim == len(like.size) else "UNDEFINED"
    made.PerFrameFunctionalGroupsSequence = [_frame(pydicom, number + 1, k + 1, series.slices[k]) for number, k in held]
    packed = np.packbits(frames.reshape(-1), bitorder="little").tobytes()
    made.PixelData = packed + b"\0" * (len(packed) % 2)
    made["PixelData"].VR = "OB"
    made.save_as(path, enforce_file_format=True)


def _file(pydicom: Any, series: Series, about: About) -> Any:
    """All but the frames."""
    first = series.slices[0].header
    now = datetime.datetime.now()
    made = pydicom.Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in IDENTITY:
        setattr(made, keyword, _text(first, keyword))
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(made, keyword, _uid(pydicom, first, keyword, series.slices))
    made.SOPClassUID, made.SOPInstanceUID = SEGMENTATION, pydicom.uid.generate_uid()
    made.Modality, made.SeriesInstanceUID = "SEG", pydicom.uid.generate_uid()
    made.SeriesNumber, made.InstanceNumber, made.SeriesDescription = SERIES_NUMBER, 1, f"ulna {about.model}"[:64]
    made.PositionReferenceIndicator = ""
    made.Manufacturer, made.ManufacturerModelName = "ulna", about.model[:64]
    made.DeviceSerialNumber, made.SoftwareVersions = "0", _version()
    made.ContentDate = made.InstanceCreationDate = made.SeriesDate = now.strftime("%Y%m%d")
    made.ContentTime = made.InstanceCreationTime = made.SeriesTime = now.strftime("%H%M%S")
    made.ImageType = ["DERIVED", "PRIMARY"]
    made.Rows, made.Columns = int(first.Rows), int(first.Columns)
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 1, 1, 0, 0
    made.LossyImageCompression, made.SegmentationType = "00", "BINARY"
    made.ContentLabel, made.ContentCreatorName = "SEGMENTATION", ""
    made.ContentDescription = "made by a program, not checked by a person"
    made.SegmentSequence = [_segment(pydicom, number, name, about) for number, name in enumerate(about.names, start=1)]
    organization = pydicom.uid.generate_uid()
    made.DimensionOrganizationSequence = [_item(pydicom, DimensionOrganizationUID=organization)]
    made.DimensionIndexSequence = [
        _item(
            pydicom,
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=pydicom.datadict.tag_for_keyword(index),
            FunctionalGroupPointer=pydicom.datadict.tag_for_keyword(group),
            DimensionDescriptionLabel=index,
        )
        for index, group in (
            ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
            ("ImagePositionPatient", "PlanePositionSequence"),
        )
    ]
    spaced = {"SpacingBetweenSlices": f"{series.step:.10g}"[:16]} if len(series.slices) > 1 else {}
    made.SharedFunctionalGroupsSequence = [
        _item(
            pydicom,
            PlaneOrientationSequence=[_item(pydicom, ImageOrientationPatient=first.ImageOrientationPatient)],
            PixelMeasuresSequence=[
                _item(
                    pydicom,
                    PixelSpacing=first.PixelSpacing,
                    SliceThickness=f"{series.step:.10g}"[:16],
                    **spaced,
                )
            ],
        )
    ]
    made.ReferencedSeriesSequence = [
        _item(
            pydicom,
            SeriesInstanceUID=_uid(pydicom, first, "SeriesInstanceUID", series.slices),
            ReferencedInstanceSequence=[_reference(pydicom, one) for one in series.slices],
        )
    ]
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = EXPLICIT
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = (
        SEGMENTATION,
        made.SOPInstanceUID,
    )
    return made


def _segment(pydicom: Any, number: int, name: str, about: About) -> Any:
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12].upper()
    return _item(
        pydicom,
        SegmentNumber=number,
        SegmentLabel=name[:64] or "unnamed",
        SegmentAlgorithmType="AUTOMATIC",
        SegmentAlgorithmName=about.model[:64],
        SegmentedPropertyCategoryCodeSequence=[_code(pydicom, CATEGORY)],
        SegmentedPropertyTypeCodeSequence=[_code(pydicom, (digest, OWN_SCHEME, name[:64] or "unnamed"))],
        SegmentationAlgorithmIdentificationSequence=[
            _item(
                pydicom,
                AlgorithmFamilyCodeSequence=[_code(pydicom, FAMILY)],
                AlgorithmName=about.model[:64],
                AlgorithmVersion=_version(),
            )
        ],
    )


def _frame(pydicom: Any, segment: int, place: int, of: Slice) -> Any:
    source = _reference(pydicom, of)
    source.PurposeOfReferenceCodeSequence = [_code(pydicom, PURPOSE)]
    source.SpatialLocationsPreserved = "YES"
    return _item(
        pydicom,
        DerivationImageSequence=[
            _item(pydicom, SourceImageSequence=[source], DerivationCodeSequence=[_code(pydicom, DERIVED)])
        ],
        FrameContentSequence=[_item(pydicom, DimensionIndexValues=[segment, place])],
        PlanePositionSequence=[_item(pydicom, ImagePositionPatient=of.header.ImagePositionPatient)],
        SegmentIdentificationSequence=[_item(pydicom, ReferencedSegmentNumber=segment)],
    )


def _reference(pydicom: Any, of: Slice) -> Any:
    return _item(
        pydicom,
        ReferencedSOPClassUID=str(of.header.get("SOPClassUID") or SECONDARY_CAPTURE),
        ReferencedSOPInstanceUID=_uid(pydicom, of.header, "SOPInstanceUID", [of]),
    )


def _item(pydicom: Any, **elements: Any) -> Any:
    made = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def _code(pydicom: Any, code: tuple[str, str, str]) -> Any:
    value, scheme, meaning = code
    return _item(pydicom, CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _text(header: Any, keyword: str) -> str:
    """A value of the patient or the study; nothing where it is not what its kind may hold."""
    try:
        value = str(header.get(keyword) or "")
    except Exception:  # bytes that are no text
        return ""
    return value if keyword != "PatientSex" or value in ("M", "F", "O") else ""


def _uid(pydicom: Any, header: Any, keyword: str, slices: Sequence[Slice]) -> str:
    """A UID of a header; where it has none, one that is the same whenever it is made."""
    value = str(header.get(keyword) or "")
    if value and len(value) <= 64 and value.replace(".", "").isdigit():
        return value
    return str(pydicom.uid.generate_uid(entropy_srcs=[keyword, *(str(one.path) for one in slices)]))


def _version() -> str:
    from ulna_runtime import __version__

    return f"ulna-runtime {__version__}"
