"""The bytes of a file, or of an image that is a folder, under the ending that they ask for; and the files beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ulna.data.formats.source import Source, check_ordinary, file_stat, is_zarr, readable, shown, suffix_of
from ulna.data.formats.zarr_writing import keep_rest
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.unread import READ
from ulna.data.quality.fixes import Change, own_suffix
from ulna.errors import DataError, Problem
from ulna.system.files import FULL
from ulna.system.trees import all_files, copy_tree

# How files are named that say where data come from, and what may be done with them
_ABOUT = ("readme", "licen", "copying", "changelog", "synthetic", "citation", "notice")
_TEXTS = ("", ".md", ".txt", ".rst", ".html", ".cff", ".json", ".pdf")
_SIDECARS = (".json", ".txt", ".xml", ".csv")


def true_suffix(source: Source, changes: list[tuple[Path, Change]], stem: Path) -> str:
    """The file's extension, or the one that its first bytes ask for."""
    suffix = suffix_of(source.path)
    if is_zarr(source.path):
        return suffix
    file_stat(source.path)
    if source.row is not None:
        return suffix
    asked = own_suffix(source.path)
    kin = {".jpeg": ".jpg", ".tiff": ".tif", ".ome.tif": ".tif", ".ome.tiff": ".tif"}
    if asked is None or kin.get(suffix, suffix) == asked:
        return suffix
    changes.append((stem.with_name(stem.name + asked), Change(f"was named {suffix}, though it is {asked}")))
    return asked


def copy(source: Path, target: Path) -> None:
    """The bytes alone, all of them: a copy of a file that nobody may write to can be written to.

    Raises:
        DataError: if one file of it cannot be read, leads nowhere or is none; what was copied then is removed.
        OSError: if there is no room for the copy.
    """
    with readable(source):
        for file in all_files(source) if is_zarr(source) else (source,):
            check_ordinary(file, file.stat())
            file.open("rb").close()
    try:
        (copy_tree if is_zarr(source) else shutil.copyfile)(source, target)
    except OSError as error:
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        if error.errno in FULL:
            raise
        with readable(source):
            raise


def not_copied(path: Path, copied: Path) -> tuple[Problem, ...]:
    """Copy what no case needs: what is wrong with it, else nothing."""
    try:
        copy(path, copied)
    except DataError as error:
        return tuple(problem._replace(file=shown(path)) for problem in error.problems)
    return ()


def replaced(copied: Path, write: Callable[[], Path], made: Sequence[Change]) -> Path:
    """What was copied is written anew, with those changes; what lies in an OME-Zarr image and is no part of it stays, such
    as label maps, and what it says of its values, as far as they are what they were or have a new number.
    """
    if not copied.is_dir():
        copied.unlink(missing_ok=True)
        return write()
    before = copied.rename(copied.with_name(f".{copied.name}"))
    written = write()
    if written.is_dir():
        keep_rest(before, written, next((one.moved for one in made if one.moved is not None), None))
    shutil.rmtree(before)
    return written


def about(dataset: Dataset) -> list[Path]:
    """Texts in a data set's folder that say where the data come from, such as a read-me and a licence; no data of a case."""
    if not dataset.root.is_dir():
        return []
    used = {source.path for case in dataset.cases for source in (*case.images, case.label) if source is not None}
    return sorted(
        path
        for path in dataset.root.iterdir()
        if path.name.lower().startswith(_ABOUT) and (path.suffix.lower() in _TEXTS or path.suffix[1:].isdecimal())
        if path.is_file() and path not in used
    )


def sidecars(source: Source) -> Iterator[tuple[Path, str]]:
    """Files beside an image that have its name and another ending, such as CASE.json of CASE.nii.gz; with that ending."""
    if source.row is None and source.series is None:
        for ending in _SIDECARS:
            path = source.path.with_name(stem_of(source.path) + ending)
            if path.is_file() and path.name not in READ:
                yield path, ending


def stem_of(path: Path) -> str:
    """The name without the ending, as it is spelled."""
    return path.name[: len(path.name) - len(suffix_of(path))]
