"""A label map as an RTSTRUCT beside its series: contours along the edges of the pixels, holes by keyholes.

A contour runs half a pixel outside of the centres of its outermost pixels, so that it encloses the area of the mask.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.coding import colour_of, concept_of
from ulna.data.formats.dicom.library import pydicom
from ulna.data.formats.dicom.originals import IDENTITY, originals_of
from ulna.data.formats.dicom.planes import to_frames
from ulna.data.formats.dicom.polygons import trace
from ulna.data.formats.dicom.seg_writing import SERIES_NUMBER
from ulna.data.formats.dicom.stack import Stack

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def write_rtstruct(path: Path, labels: NDArray[Any], stack: Stack, about: About) -> tuple[str, ...]:
    """Write an RTSTRUCT; what its series does not state and had to be made up.

    Args:
        labels: (i, j, k) on the grid of the series, or (K, i, j, k) of overlapping classes.
    """
    library = pydicom()
    originals = originals_of(stack)
    first = originals.datasets[0]
    made = library.dataset.Dataset()
    now = datetime.datetime.now()
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    if "SpecificCharacterSet" in first:
        made.SpecificCharacterSet = first.SpecificCharacterSet
    for keyword in (*IDENTITY, "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(made, keyword, first.get(keyword))
    made.PositionReferenceIndicator = first.get("PositionReferenceIndicator") or ""
    made.SOPClassUID, made.SOPInstanceUID = _RTSTRUCT, library.uid.generate_uid()
    made.InstanceCreationDate, made.InstanceCreationTime = day, time
    made.Modality, made.SeriesInstanceUID, made.SeriesNumber = "RTSTRUCT", library.uid.generate_uid(), SERIES_NUMBER + 1
    made.SeriesDescription, made.OperatorsName = f"ulna {about.algorithm}"[:64], ""
    made.Manufacturer, made.ManufacturerModelName = "ulna", about.algorithm[:64]
    made.SoftwareVersions, made.InstanceNumber = about.version[:64], 1
    made.StructureSetLabel, made.StructureSetName = "ulna", about.algorithm[:64]
    made.StructureSetDate, made.StructureSetTime, made.ApprovalStatus = day, time, "UNAPPROVED"
    made.ReferencedFrameOfReferenceSequence = [_referenced(library, originals.datasets)]
    count = len(labels) if labels.ndim == 4 else max(len(about.names), int(labels.max(initial=0)))
    structures, contours, observations = [], [], []
    for number in range(1, count + 1):
        mask = labels[number - 1] > 0 if labels.ndim == 4 else labels == number
        structures.append(_item(library, ROINumber=number, ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
                                ROIName=about.name(number)[:64], ROIGenerationAlgorithm="AUTOMATIC"))  # fmt: skip
        drawn = _contours(library, to_frames(mask, stack), stack, originals.datasets)
        region = _item(library, ROIDisplayColor=list(colour_of(number)), ReferencedROINumber=number)
        if drawn:
            region.ContourSequence = drawn
        contours.append(region)
        observations.append(_observation(library, number, about.name(number)))
    made.StructureSetROISequence, made.ROIContourSequence = structures, contours
    made.RTROIObservationsSequence = observations
    made.file_meta = library.dataset.FileMetaDataset()
    # where elements state their kinds, the points of one contour end at 64 KB
    made.file_meta.TransferSyntaxUID = library.uid.ImplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = _RTSTRUCT, made.SOPInstanceUID
    made.save_as(path, enforce_file_format=True)
    return originals.missing


def _item(library: Any, **values: Any) -> Any:
    item = library.dataset.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _referenced(library: Any, datasets: list[Any]) -> Any:
    first = datasets[0]
    images = [_image(library, one) for one in datasets]
    series = _item(library, SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(library, ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID=first.StudyInstanceUID,
                  RTReferencedSeriesSequence=[series])  # fmt: skip
    return _item(library, FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _image(library: Any, dataset: Any, frame: int | None = None) -> Any:
    item = _item(library, ReferencedSOPClassUID=dataset.SOPClassUID, ReferencedSOPInstanceUID=dataset.SOPInstanceUID)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _contours(library: Any, frames: NDArray[np.bool_], stack: Stack, datasets: list[Any]) -> list[Any]:
    several = len(stack.frames[0].header.slices) > 1
    of_file = {
        id(h): dataset for h, dataset in zip(dict.fromkeys(f.header for f in stack.frames), datasets, strict=True)
    }
    drawn: list[Any] = []
    for frame, mask in zip(stack.frames, frames, strict=True):
        at = frame.at
        assert at.position is not None and at.orientation is not None and at.spacing is not None
        along_i = np.array(at.orientation[:3]) * at.spacing[1]
        along_j = np.array(at.orientation[3:]) * at.spacing[0]
        for polygon in trace(mask):
            points = np.array(at.position) + polygon[:, :1] * along_i + polygon[:, 1:] * along_j
            reference = _image(library, of_file[id(frame.header)], frame.number + 1 if several else None)
            contour = _item(library, ContourImageSequence=[reference], ContourGeometricType="CLOSED_PLANAR",
                            NumberOfContourPoints=len(points))  # fmt: skip
            contour.ContourData = [f"{value:.6f}"[:16] for value in points.ravel()]
            contour.ContourNumber = len(drawn) + 1
            drawn.append(contour)
    return drawn


def _observation(library: Any, number: int, name: str) -> Any:
    concept = concept_of(name)
    value, scheme, meaning = concept.type
    code = _item(library, CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    return _item(library, ObservationNumber=number, ReferencedROINumber=number, RTROIIdentificationCodeSequence=[code],
                 RTROIInterpretedType="", ROIInterpreter="")  # fmt: skip
