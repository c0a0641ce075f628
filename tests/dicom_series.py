"""Synthetic DICOM series for the tests: written with pydicom alone, a file a slice, every name in them a canary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed (extra dicom)")

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
CANARY = "CANARY"
IDENTITY = {
    "PatientName": f"{CANARY}^Name",
    "PatientID": f"{CANARY}-ID",
    "PatientBirthDate": "19010203",
    "AccessionNumber": f"{CANARY}-ACC",
    "ReferringPhysicianName": f"{CANARY}^Referrer",
    "InstitutionName": f"{CANARY} hospital",
    "StudyID": f"{CANARY}-S",
    "PatientSex": "O",
    "StudyDate": "20200101",
    "StudyTime": "120000",
}
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
Change = Callable[[Any, int], None]


def uid(*parts: object) -> str:
    """A UID that depends on the parts alone."""
    return str(pydicom.uid.generate_uid(entropy_srcs=[str(part) for part in parts]))


def dataset(
    values: np.ndarray,
    *,
    number: int = 1,
    series: str = "a",
    study: str = "s",
    modality: str = "CT",
    description: str = "axial 5 mm",
    orientation: tuple[tuple[float, ...], ...] = AXIAL,
    position: tuple[float, ...] | np.ndarray = (0.0, 0.0, 0.0),
    spacing: tuple[float, float] = (1.0, 1.0),
    thickness: float = 2.0,
    intercept: float = 0.0,
    slope: float = 1.0,
) -> Any:
    """One slice (rows, columns) of 16 bits; `spacing` is between rows and between columns."""
    made = pydicom.Dataset()
    for keyword, value in IDENTITY.items():
        setattr(made, keyword, value)
    made.SOPClassUID = MR if modality == "MR" else CT
    made.SOPInstanceUID = uid(study, series, number)
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = (
        uid(study),
        uid(study, series),
        uid(study, "f"),
    )
    made.Modality, made.SeriesDescription, made.InstanceNumber, made.SeriesNumber = modality, description, number, 1
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.Rows, made.Columns = values.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.ImageOrientationPatient = [text(v) for v in (*orientation[0], *orientation[1])]
    made.ImagePositionPatient = [text(v) for v in position]
    made.PixelSpacing, made.SliceThickness = [text(v) for v in spacing], text(thickness)
    made.RescaleIntercept, made.RescaleSlope = text(intercept), text(slope)
    made.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = EXPLICIT
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = (
        made.SOPClassUID,
        made.SOPInstanceUID,
    )
    return made


def text(value: float) -> str:
    """A decimal string of at most 16 signs."""
    return f"{float(value):.10f}"[:16]


def save(made: Any, path: Path, *, syntax: str = EXPLICIT) -> Path:
    """Write it, in any uncompressed transfer syntax."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.file_meta.TransferSyntaxUID = syntax
    with pydicom.config.disable_value_validation():
        made.save_as(path, enforce_file_format=True)
    return path


def normal_of(orientation: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return np.cross(orientation[0], orientation[1])


def write_series(
    folder: Path,
    values: np.ndarray,
    *,
    step: float = 2.0,
    origin: tuple[float, ...] = (-10.0, 5.0, 30.0),
    tilt: tuple[float, float] = (0.0, 0.0),
    reverse: bool = False,
    change: Change | None = None,
    name: str = "{}.dcm",
    **kwargs: Any,
) -> list[Path]:
    """Slices (k, rows, columns) along the normal, `step` mm apart.

    Args:
        tilt: mm by which every slice is moved along rows and columns against the one before.
        reverse: number the files from the other end.
        change: called with every dataset and its k before it is written.
    """
    orientation = kwargs.get("orientation", AXIAL)
    along = normal_of(orientation) * step + tilt[0] * np.array(orientation[0]) + tilt[1] * np.array(orientation[1])
    paths = []
    for k, slice_values in enumerate(values):
        number = len(values) - k if reverse else k + 1
        made = dataset(slice_values, number=number, position=np.array(origin) + k * along, **kwargs)
        if change is not None:
            change(made, k)
        paths.append(save(made, folder / name.format(number)))
    return paths


def multiframe(values: np.ndarray, *, step: float = 2.0, order: list[int] | None = None, **kwargs: Any) -> Any:
    """An enhanced CT of all slices in one file, its frames in the order given."""
    made = dataset(values[0], **kwargs)
    orientation = kwargs.get("orientation", AXIAL)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(made, keyword)
    del made.RescaleSlope, made.RescaleIntercept
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    order = list(range(len(values))) if order is None else order
    made.NumberOfFrames = len(order)
    made.PixelData = values[order].tobytes()

    def item(**elements: Any) -> Any:
        one = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(one, keyword, value)
        return one

    spacing = [text(v) for v in kwargs.get("spacing", (1.0, 1.0))]
    transform = item(
        RescaleSlope=text(kwargs.get("slope", 1)), RescaleIntercept=text(kwargs.get("intercept", 0)), RescaleType="HU"
    )
    made.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[
                item(ImageOrientationPatient=[text(v) for v in (*orientation[0], *orientation[1])])
            ],
            PixelMeasuresSequence=[item(PixelSpacing=spacing, SliceThickness=text(step))],
            PixelValueTransformationSequence=[transform],
        )
    ]
    normal = normal_of(orientation)
    made.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[
                item(ImagePositionPatient=[text(v) for v in np.array((-10.0, 5.0, 30.0)) + k * step * normal])
            ]
        )
        for k in order
    ]
    return made


def ramp(k: int, rows: int, columns: int, *, dtype: Any = np.int16) -> np.ndarray:
    """(k, rows, columns), every value another."""
    return np.arange(k * rows * columns).reshape(k, rows, columns).astype(dtype)


def patient_place(made: Any, row: int, column: int) -> np.ndarray:
    """LPS mm of a pixel, by the equation of PS3.3 C.7.6.2.1.1 written out."""
    xr, yr, zr, xc, yc, zc = (float(v) for v in made.ImageOrientationPatient)
    sx, sy, sz = (float(v) for v in made.ImagePositionPatient)
    between_rows, between_columns = (float(v) for v in made.PixelSpacing)
    return np.array(
        [
            xr * between_columns * column + xc * between_rows * row + sx,
            yr * between_columns * column + yc * between_rows * row + sy,
            zr * between_columns * column + zc * between_rows * row + sz,
        ]
    )
