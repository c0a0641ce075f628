"""A DICOM series as a volume: axes run along rows (i), along columns (j) and along the normal (k). Strict: slices of one kind
at equal distances, a file each; what is odd is left to `ulna predict`, which says what it does about it.

File names and instance numbers say nothing about the place of a slice; positions do. No message quotes a value of a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.errors import UsageError, needed
from ulna_runtime.volume import MOST_VOXELS, Volume

REGULAR = 0.1  # of a slice's distance: positions are rounded in many files
STRAIGHT = 0.1  # of a pixel
TO_RAS = np.diag([-1.0, -1.0, 1.0])
IDENTITY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
TAGS = (
    *IDENTITY, *PLACE, "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "Modality", "Rows", "Columns", "NumberOfFrames", "SliceThickness", "PhotometricInterpretation", "SamplesPerPixel",
    "ImageType", "SharedFunctionalGroupsSequence",
)  # fmt: skip
LABELS = ("SEG", "RTSTRUCT", "SR", "PR", "KO")  # lie beside the images of a study
DIRECTORY = "1.2.840.10008.1.3.10"
NAMED = (".dcm", ".ima")
ELSEWHERE = "`ulna predict FILE` reads such a series"


class Slice(NamedTuple):
    """A file of a series.

    Args:
        path: of the file.
        header: without pixels.
    """

    path: Path
    header: Any

    def numbers(self, keyword: str, count: int) -> NDArray[np.float64]:
        """The numbers of an element.

        Raises:
            UsageError: if it has no such numbers.
        """
        try:
            found = np.array([float(one) for one in self.header.get(keyword) or ()])
        except (TypeError, ValueError):
            found = np.empty(0)
        if len(found) != count or not np.isfinite(found).all():
            raise UsageError(f"{self.path}: states no {keyword} that can be used; export the series again")
        return found


class Series(NamedTuple):
    """What a mask needs to be written beside its series.

    Args:
        slices: in the order of k.
        step: between slices, in mm.
    """

    slices: tuple[Slice, ...]
    step: float


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes, whatever its name."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file, or a folder with some."""
    return any(map(is_dicom, path.iterdir())) if path.is_dir() else is_dicom(path)


def read_series(path: Path, dims: int) -> Volume:
    """(1, i, j, k), or (1, i, j) where a single slice is read in 2D.

    Args:
        path: a folder with the files of one series, or a file.
        dims: of the model.

    Raises:
        UsageError: if it is no series of grey slices on one grid.
    """
    with needed("pydicom", "dicom", str(path)):
        import pydicom  # noqa: F401
    slices = [one for file in _files(path) if _is_slice(one := _header(file))]
    _check_kind(path, slices)
    first = slices[0]
    orientation = first.numbers("ImageOrientationPatient", 6)
    along_i, along_j = orientation[:3], orientation[3:]
    normal = np.cross(along_i, along_j)
    if abs(along_i @ along_j) > 1e-2 or not np.allclose(np.linalg.norm((along_i, along_j), axis=1), 1, atol=1e-2):
        raise UsageError(
            f"{first.path}: has directions that are no perpendicular unit vectors; export the series again"
        )
    normal /= np.linalg.norm(normal)
    slices.sort(key=lambda one: float(normal @ one.numbers("ImagePositionPatient", 3)))
    between = first.numbers("PixelSpacing", 2)
    if between.min() <= 0:
        raise UsageError(f"{first.path}: has a PixelSpacing that is not above 0; export the series again")
    positions = np.stack([one.numbers("ImagePositionPatient", 3) for one in slices])
    step = _step(path, slices, np.array([float(normal @ position) for position in positions]))
    spacing = (float(between[1]), float(between[0]), step)
    moved = positions - positions[0]
    if max(np.abs(moved @ along_i).max() / spacing[0], np.abs(moved @ along_j).max() / spacing[1]) > STRAIGHT:
        raise UsageError(f"{path}: has slices that are shifted against each other (a tilted gantry); {ELSEWHERE}")
    affine = np.eye(4)
    affine[:3] = TO_RAS @ np.stack((along_i * spacing[0], along_j * spacing[1], normal * step, positions[0]), axis=1)
    array = _values(path, slices).transpose(2, 1, 0)[None]
    series = Series(tuple(slices), step)
    if len(slices) == 1 and dims != 3:
        return Volume(array[..., 0], spacing[:2], "mm", affine, path, ".dcm", series)
    return Volume(array, spacing, "mm", affine, path, ".dcm", series)


def _files(path: Path) -> list[Path]:
    """The DICOM files of a folder; one that its name calls so must be one, or a slice at an end would not be missed."""
    if not path.is_dir():
        return [path]
    shown = [file for file in sorted(path.iterdir()) if not file.name.startswith("._") and file.is_file()]
    wrong = next((file for file in shown if file.suffix.lower() in NAMED and not is_dicom(file)), None)
    if wrong is not None:
        raise UsageError(f"{wrong}: is no DICOM file; take it out, or copy the series again")
    return [file for file in shown if is_dicom(file)]


def _is_slice(one: Slice) -> bool:
    """Not the index of a medium (DICOMDIR), nor what is said about images."""
    kind = one.header.file_meta.get("MediaStorageSOPClassUID")
    return kind != DIRECTORY and one.header.get("Modality") not in LABELS


def _header(path: Path) -> Slice:
    import pydicom

    with _reading(path):
        return Slice(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What a library says of a file may hold values of its header: the type of the error must do."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        told = f"is damaged, or packed in a way that nothing installed unpacks ({type(error).__name__})"
        raise UsageError(f"{path}: {told}; copy it again, or unpack it with dcmdjpeg or gdcmconv --raw") from None


def _check_kind(path: Path, slices: list[Slice]) -> None:
    """Whether they are grey slices of one series and one kind."""
    if not slices:
        raise UsageError(f"{path}: holds no DICOM image; give the folder of one series")
    count = len({str(one.header.get("SeriesInstanceUID")) for one in slices})
    if count > 1:
        raise UsageError(
            f"{path}: holds {count} series; give a folder with the files of one, or `ulna predict --series`"
        )
    kinds: dict[str, Slice] = {}
    for one in slices:
        header = one.header
        if header.get("SharedFunctionalGroupsSequence") or int(header.get("NumberOfFrames") or 1) > 1:
            raise UsageError(f"{one.path}: holds several frames in one file; {ELSEWHERE}")
        photometric = str(header.get("PhotometricInterpretation"))
        if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(header.get("SamplesPerPixel") or 1) != 1:
            raise UsageError(f"{one.path}: is no grey image; give the folder of a series of grey slices")
        where = (one.numbers("ImageOrientationPatient", 6).round(2) + 0.0).tolist()
        between = [float(f"{n:.3g}") for n in one.numbers("PixelSpacing", 2)]
        size = (header.get("Rows"), header.get("Columns"))
        frame = str(header.get("FrameOfReferenceUID"))
        kinds.setdefault(str((header.get("Modality"), size, where, between, photometric, frame)), one)
    if len(kinds) > 1:
        a, b = list(kinds.values())[:2]
        told = f"{a.path.name} and {b.path.name} differ in size, orientation, spacing or kind"
        raise UsageError(f"{path}: {told}, so they make no volume; {ELSEWHERE}")


def _step(path: Path, slices: list[Slice], places: NDArray[np.float64]) -> float:
    """The distance between slices."""
    if len(slices) == 1:
        try:
            thickness = float(slices[0].header.get("SliceThickness") or 0)
        except (TypeError, ValueError):
            thickness = 0.0
        return thickness if 0 < thickness < np.inf else 1.0
    step = float(places[-1] - places[0]) / (len(places) - 1)
    off = np.abs(places - (places[0] + step * np.arange(len(places)))).max()
    if step <= 0 or off > REGULAR * step:
        gaps = np.diff(places)
        told = f"has slices at distances from {gaps.min():.4g} to {gaps.max():.4g} mm"
        raise UsageError(f"{path}: {told}, so some are missing or there twice; {ELSEWHERE}")
    return step


def _values(path: Path, slices: list[Slice]) -> NDArray[Any]:
    """(k, rows, columns): whole values as int32, scaled ones as float32."""
    header = slices[0].header
    size = (len(slices), int(header.get("Rows") or 0), int(header.get("Columns") or 0))
    if int(np.prod(size, dtype=np.int64)) > MOST_VOXELS or min(size) < 1:
        raise UsageError(f"{path}: its headers promise {size} voxels, which are none or more than are read")
    held = np.empty(size, np.int32)
    for number, one in enumerate(slices):
        values = _slice_values(one)
        if values.shape != size[1:]:
            raise UsageError(f"{one.path}: holds pixels of the shape {values.shape}, not {size[1:]}; export it again")
        if values.dtype.kind == "f" and held.dtype.kind != "f":
            held = held.astype(np.float32)
        held[number] = values
    return held


def _slice_values(one: Slice) -> NDArray[Any]:
    """(rows, columns), with slope and intercept; bright is large."""
    import pydicom

    with _reading(one.path):
        dataset = pydicom.dcmread(one.path)
        if dataset.get("ModalityLUTSequence") or "PixelData" not in dataset:
            raise UsageError(f"{one.path}: holds no whole numbers with slope and intercept; {ELSEWHERE}")
        stored = pydicom.pixels.pixel_array(dataset, raw=True).astype(np.int64)
        slope, intercept = (
            float(default if (value := dataset.get(name)) is None else value)
            for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
        signed, bits = dataset.get("PixelRepresentation") == 1, int(dataset.BitsStored)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.get("Modality") not in ("CT", "PT")
    if not np.isfinite((slope, intercept)).all() or slope == 0:
        raise UsageError(f"{one.path}: has a RescaleSlope or RescaleIntercept that cannot be; export it again")
    if not signed:
        stored &= (1 << bits) - 1  # old files keep drawings in the bits above
    if inverted:
        stored = (-1 if signed else (1 << bits) - 1) - stored
    if slope != 1 or not intercept.is_integer() or bits > 16:
        return np.asarray(stored.astype(np.float32) * np.float32(slope) + np.float32(intercept))
    return stored + int(intercept)
