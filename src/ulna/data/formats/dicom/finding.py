"""The DICOM files of a folder and the folders in it, whatever their names, by the series that they say they are of."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ulna.data.formats.dicom.header import Header, is_dicom, read_header
from ulna.data.formats.source import beside, is_zarr, suffix_of
from ulna.errors import DataError, Problem, brief

NAMED = (".dcm", ".ima", ".dicom")  # endings that promise a DICOM file
_MOST_DEEP = 24


class Looked(NamedTuple):
    """What lies in a folder.

    Args:
        headers: of all DICOM files, in the order of their paths.
        problems: files that should be DICOM and cannot be read.
        others: files that are no DICOM.
    """

    headers: tuple[Header, ...]
    problems: tuple[Problem, ...]
    others: tuple[Path, ...]


def look(root: Path) -> Looked:
    """Read the headers of all DICOM files under `root`; no pixel.

    A file whose name differs from that of a DICOM file beside it in digits alone is one of its kind, or a damaged one.
    """
    headers: list[Header] = []
    problems: list[Problem] = []
    others: list[Path] = []
    found = sorted(_files(root))
    dicom = {path for path in found if is_dicom(path)}
    alike = {(path.parent, _without_digits(path)) for path in dicom}
    for path in found:
        if path not in dicom and suffix_of(path) not in NAMED and (path.parent, _without_digits(path)) not in alike:
            others.append(path)
            continue
        try:
            headers.append(known_header(path))
        except DataError as error:
            problems += error.problems
    return Looked(tuple(headers), tuple(problems), tuple(others))


def _without_digits(path: Path) -> str:
    return re.sub(r"\d+", "#", path.name)


def known_header(path: Path) -> Header:
    """As `read_header`; files that did not change are read once."""
    try:
        stat = path.stat()
    except OSError:
        return read_header(path)
    return _header(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16384)
def _header(path: Path, _time: int, _size: int) -> Header:
    return read_header(path)


def holds_dicom(root: Path, most: int = 4096) -> bool:
    """Whether there is a DICOM file in a folder or in the folders in it; looks at some thousand files, no more."""
    for number, path in enumerate(_files(root)):
        if is_dicom(path) or suffix_of(path) in NAMED:
            return True
        if number >= most:
            break
    return False


def _files(root: Path) -> Iterable[Path]:
    for folder, names, files in os.walk(root, followlinks=True):
        depth = len(Path(folder).relative_to(root).parts)
        inner = [name for name in names if not beside(name) and not is_zarr(Path(name))]
        names[:] = sorted(inner) if depth < _MOST_DEEP else []
        yield from (Path(folder) / name for name in sorted(files) if not beside(name))


def by_series(headers: Iterable[Header]) -> dict[str, list[Header]]:
    """Images by their series, wherever they lie; those without a series UID by their folder."""
    found: dict[str, list[Header]] = {}
    for header in headers:
        if header.kind == "image":
            found.setdefault(header.series or str(header.path.parent), []).append(header)
    return found


def described(headers: Sequence[Header]) -> str:
    """A series as a list shows it: modality, description, size, UID.

    No other text of its files is shown: it may name a person.
    """
    first = headers[0]
    frames = sum(max(len(header.slices), 1) for header in headers)
    name = f" {brief(first.shown)}" if first.shown else ""
    uid = f", {first.series}" if first.series else ""
    return f"{first.modality or 'unknown'}{name}, {first.columns} x {first.rows} x {frames}{uid}"
