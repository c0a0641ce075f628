"""Masks by case id: what `predict` wrote, the label maps of a data set, or any folder of masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ulna.data.formats.npz import npz_contents
from ulna.data.formats.source import (
    ARRAY_SUFFIX,
    DICOM_SUFFIX,
    IMAGE_SUFFIXES,
    Source,
    beside,
    case_name,
    data_error,
    id_problem,
    is_zarr,
    readable,
    suffix_of,
)
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.groups import Grouping, read_groups
from ulna.data.layout.pairing import Found, files_in
from ulna.errors import DataError, Problem
from ulna.recipe import Labels


class Masks(NamedTuple):
    """Case id -> its mask, the classes where a file names them, the DICOM series on which a mask was drawn, and the case with
    its image, of a data set."""

    sources: dict[str, Source]
    labels: Labels | None
    images: Mapping[str, Source] = MappingProxyType({})
    cases: Mapping[str, Case] = MappingProxyType({})


def find_masks(path: Path) -> Masks:
    """The masks that lie under `path`: a data set with labels, a folder of mask files, or an .npz with `masks`.

    Raises:
        DataError: if there is none, or two have one id.
    """
    with readable(path):
        return _found(path)


def _found(path: Path) -> Masks:
    if path.is_file() and suffix_of(path) == ARRAY_SUFFIX:
        return Masks(rows_of(path), None)
    if not path.is_dir() or is_zarr(path):
        raise data_error(path, "is no folder of masks" if path.exists() else "does not exist", "check the path")
    try:
        dataset, problems = Dataset.scan(path, need_labels=False)
    except DataError:
        return Masks(_files(path), None)
    if dataset.labelled:
        if problems:
            raise DataError(problems, path)
        sources = {case.id: case.label for case in dataset.labelled if case.label is not None}
        images = {case.id: case.images[0] for case in dataset.labelled if case.images[0].series is not None}
        return Masks(sources, dataset.labels, images, {case.id: case for case in dataset.labelled})
    return Masks(_files(path), None)


def groups_of(path: Path, ids: Iterable[str], *, needed: bool = True) -> Grouping:
    """The groups (patients, volumes) of the cases and their fields, as groups.json beside the masks says.

    Raises:
        DataError: if it is damaged, or `needed` and it names no groups.
    """
    folder = path if path.is_dir() else path.parent
    problems: list[Problem] = []
    with readable(folder):
        groups = read_groups(folder, list(ids), problems, [])
    if problems:
        raise DataError(problems, path)
    if needed and not groups.patients:
        remedy = 'write {"case id": "volume"} into it, or leave out --by group'
        raise data_error(folder / "groups.json", "does not say which cases belong together", remedy)
    return groups


def _files(folder: Path) -> dict[str, Source]:
    found = Found(folder)
    sources = {name: Source(path) for name, path in files_in(found, folder).items()}
    for path in sorted(folder.glob("*.npz")):
        if not path.name.endswith("_probabilities.npz"):
            for name, row in rows_of(path).items():
                if name in sources:
                    found.wrong(row, f"has the id {name!r}, as {sources[name]} has", "keep one mask per case")
                sources.setdefault(name, row)
    for ending in ("_probabilities", "_rtstruct"):
        for name in [name for name in sources if name.removesuffix(ending) in sources.keys() - {name}]:
            del sources[name]
    if found.problems:
        raise DataError(found.problems, folder)
    if not sources:
        raise data_error(
            folder, "holds no masks", "give a folder of masks, a data set with labels, or an .npz with `masks`"
        )
    return sources


def mask_files(folder: Path) -> list[Path]:
    """Files of a folder that could be masks, by their names."""
    suffixes = (*IMAGE_SUFFIXES, ARRAY_SUFFIX, DICOM_SUFFIX)
    named = [path for path in sorted(folder.iterdir()) if suffix_of(path) in suffixes]
    files = [path for path in named if path.is_file() or is_zarr(path)]
    return [path for path in files if not case_name(path).endswith("_probabilities") and not beside(path.name)]


def rows_of(path: Path) -> dict[str, Source]:
    """The masks of an npz file by their ids.

    Raises:
        DataError: if it holds none, or two have one id.
    """
    contents = npz_contents(path)
    if contents.masks is None:
        raise data_error(path, "holds no `masks`", "save `masks` (N, *S) and `ids`")
    rows: dict[str, Source] = {}
    problems = []
    for row, name in enumerate(contents.ids):
        problem = id_problem(Source(path, row), name)
        if name in rows:
            what = f"has the id {name!r}, as {rows[name]} has"
            problem = Problem(str(Source(path, row)), what, "keep one mask per case")
        problems += [problem] if problem else []
        rows.setdefault(name, Source(path, row))
    if problems:
        raise DataError(problems, path)
    return rows
