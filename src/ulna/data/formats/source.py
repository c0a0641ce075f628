"""Where the pixels of a case lie: a file, or a row of an npz file; and how names of files become ids of cases."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ulna.errors import DataError, Problem, printable

NIFTI_SUFFIXES = (".nii.gz", ".nii")
RASTER_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
ITK_SUFFIXES = (".mha", ".nrrd")
NUMPY_SUFFIX = ".npy"
ZARR_SUFFIXES = (".ome.zarr", ".zarr")  # of folders
DICOM_SUFFIX = ".dcm"
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *RASTER_SUFFIXES, *TIFF_SUFFIXES, *ITK_SUFFIXES, NUMPY_SUFFIX, *ZARR_SUFFIXES)
ARRAY_SUFFIX = ".npz"
_COMPOUND = (".nii.gz", ".ome.tif", ".ome.tiff", ".ome.zarr")

_BESIDE = ("readme", "licen", "copying", "changelog", "changes.json", "thumbs.db", "desktop.ini", "__macosx", ".")
AGAIN = "copy or download the file again"
LINES_PER_FAULT = 12
MOST_NAME_BYTES = 200  # file systems end at 255; an ending, and a mark while it is written, come on top


class Structure(NamedTuple):
    """A class of a data set, and the names and codes that segments of a DICOM SEG or RTSTRUCT may have for it."""

    name: str
    known_as: tuple[str, ...]


class Series(NamedTuple):
    """The DICOM files of a source: the slices of an image, or the label files of a case.

    Args:
        files: of the image, or of the labels.
        fixes: what may be done about odd slices; see `ulna.data.formats.dicom.fixes`.
        grid: of labels: the files of the image on whose voxels they are read; empty: on the voxels that they state.
        structures: of labels: the classes in their order; empty: all, numbered as they are.
        overlapping: of labels: one map per class.
    """

    files: tuple[Path, ...]
    fixes: tuple[tuple[str, str], ...] = ()
    grid: tuple[Path, ...] = ()
    structures: tuple[Structure, ...] = ()
    overlapping: bool = False


class Source(NamedTuple):
    """A file (OME-Zarr: a folder), one row of an npz file, or a DICOM series: its folder (or its one file) and its files."""

    path: Path
    row: int | None = None
    series: Series | None = None

    def __str__(self) -> str:
        return str(self.path) if self.row is None else f"{self.path}[{self.row}]"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold its values."""
        return (self.path,) if self.series is None else self.series.files

    @property
    def places(self) -> tuple[Path, ...]:
        """Its path, and the folders of a series or of an image that is a folder itself: where nothing is written."""
        inside = self.series is not None or is_zarr(self.path)
        return tuple(dict.fromkeys((self.path, *(file.parent for file in self.files if inside))))


def suffix_of(path: Path | str) -> str:
    """The extension in lower case; two-part extensions count as one.

    Example:
        >>> suffix_of("scans/A.v2.NII.GZ"), suffix_of("b.png"), suffix_of("README")
        ('.nii.gz', '.png', '')
    """
    name = Path(path).name.lower()
    return next((suffix for suffix in _COMPOUND if name.endswith(suffix)), Path(name).suffix)


def is_zarr(path: Path) -> bool:
    """Whether a path is that of an OME-Zarr folder, by its name."""
    return suffix_of(path) in ZARR_SUFFIXES


def case_name(path: Path | str) -> str:
    """The file name without the extension of an image, in Unicode's composed form (NFC): some systems take letters apart.

    Whatever else follows a dot belongs to the name: `patient.1` and `patient.2` are two.

    Example:
        >>> case_name("scans/A.v2.nii.gz"), case_name("1.2.840.0175"), case_name("patient.1.png")
        ('A.v2', '1.2.840.0175', 'patient.1')
    """
    name, suffix = Path(path).name, suffix_of(path)
    return composed(
        name[: len(name) - len(suffix)] if suffix in (*IMAGE_SUFFIXES, ARRAY_SUFFIX, DICOM_SUFFIX) else name
    )


def beside(name: str) -> bool:
    """Whether a file of that name stands beside the data and is passed over: a read-me, a licence, a hidden file."""
    return name.lower().startswith(_BESIDE)


def composed(text: str) -> str:
    """Unicode's form NFC, in which one name has one spelling."""
    return unicodedata.normalize("NFC", text)


def data_error(where: object, what: str, remedy: str) -> DataError:
    """The error for one thing that is wrong with one file."""
    return DataError([Problem(shown(where), what, remedy)])


def first_line(error: Exception) -> str:
    """The first line of what a library says, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def readable(where: object) -> Iterator[None]:
    """Tell what the file system refuses (permissions, loops of links, a file in place of a folder) as a fault."""
    try:
        yield
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise data_error(error.filename or where, what, "check the path and its permissions") from None


_SPECIAL = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a named pipe, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)


def file_stat(path: Path) -> os.stat_result:
    """Size and time of an ordinary file; whatever else stands there is told for what it is, and never opened.

    Raises:
        DataError: if there is nothing, a link to nothing, a folder, a pipe (opening it would wait for ever), or no byte.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        what = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise data_error(path, what, "check the path") from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise data_error(path, what, "check the path and its permissions") from None
    check_ordinary(path, found)
    if not found.st_size:
        raise data_error(path, "is empty (0 bytes)", "copy the file again or take the case out")
    return found


def check_ordinary(path: Path, found: os.stat_result) -> None:
    """Refuse what is no file.

    Raises:
        DataError: of a folder, a pipe, a socket or a device.
    """
    for is_kind, what in _SPECIAL:
        if is_kind(found.st_mode):
            raise data_error(path, what, "put a file in its place")


def id_problem(where: object, name: str) -> Problem | None:
    """The problem with an id that cannot be the name of a file, everywhere and with what ulna adds to it."""
    length = len(name.encode("utf-8", "replace"))
    if length > MOST_NAME_BYTES:
        what = f"has a name of {length} bytes, and files made from it get longer ones (at most {MOST_NAME_BYTES})"
        return Problem(shown(where), what, "give it a shorter name")
    if name not in ("", ".", "..") and name.isprintable() and not any(sign in name for sign in "/\\"):
        if name == name.strip(" .") or name.startswith("."):
            return None
        what = f"has the id {name!r}, which begins or ends with a space or a dot"
        return Problem(shown(where), what, "rename it: some systems drop them")
    return Problem(shown(where), f"has the id {name!r}, which cannot be a file name", "give it another id")


shown = printable  # of names in messages


def condensed(problems: Iterable[Problem], root: object) -> list[Problem]:
    """At most 12 problems of each class of fault (those with one remedy), and a line that counts the others."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.remedy, []).append(problem)
    shown: list[Problem] = []
    for remedy, members in kinds.items():
        hidden = len(members) - LINES_PER_FAULT
        if hidden <= 1:  # a line that says "1 more" takes the room of the line it hides
            shown += members
        else:
            shown += [*members[:LINES_PER_FAULT], Problem(str(root), f"{hidden} more problems of this kind", remedy)]
    return shown


def all_errors(problems: Sequence[Problem], root: object) -> DataError:
    """One error that holds every problem and prints at most 12 of each class."""
    error = DataError(condensed(problems, root), root)
    error.problems = tuple(problems)
    return error
