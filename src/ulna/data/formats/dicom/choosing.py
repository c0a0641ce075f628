"""Which series of a folder is taken: the one that is asked for, else the one with the most slices; and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.data.formats.dicom.finding import by_series, described, look
from ulna.data.formats.dicom.fixes import parse_fixes
from ulna.data.formats.dicom.header import Header
from ulna.data.formats.dicom.naming import plain
from ulna.data.formats.source import Series, Source, data_error
from ulna.errors import UsageError, listed

_LOCALISER = {"LOCALIZER", "SCOUT"}
_CHOOSE = "choose one with --series UID or --series DESCRIPTION"
_SHOWN = 8


class Wishes(NamedTuple):
    """What a person says about DICOM series.

    Args:
        series: UIDs or descriptions: of the one to take, or of several that are the channels of a case, in their order.
        fixes: what may be done about odd slices; see `fixes`.
        channels: descriptions that a run was trained on, for where `series` is empty.
    """

    series: tuple[str, ...] = ()
    fixes: tuple[tuple[str, str], ...] = ()
    channels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the series that are wanted; empty: one, by the rule."""
        return self.series or self.channels

    def over(self, other: Wishes) -> Wishes:
        """These, and where they say nothing the other ones."""
        fixes = tuple(sorted({**dict(other.fixes), **dict(self.fixes)}.items()))
        return Wishes(self.series or other.series, fixes, self.channels or other.channels)


def parse_wishes(series: Sequence[str], dicom: Sequence[str]) -> Wishes:
    """The wishes of a command line: `--series TEXT` and `--dicom KEY=VALUE`.

    Raises:
        UsageError: naming the valid keys and values.
    """
    values: dict[str, str] = {}
    for one in dicom:
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(f"--dicom {one}: write KEY=VALUE, such as --dicom tilt=refuse")
        values[key] = value
    if not all(name.strip() for name in series):
        raise UsageError("--series: is empty; give the UID or the description of a series")
    return Wishes(tuple(series), parse_fixes(values, "--dicom"))


def choose(found: Mapping[str, Sequence[Header]], names: Sequence[str], where: Path) -> tuple[list[str], str]:
    """The keys of the series that are taken, one or one for every name; and a sentence where there was a choice.

    Args:
        found: as `by_series` gives them.
        names: UIDs or descriptions.

    Raises:
        DataError: with a list of all series, if the choice is not clear.
    """
    table = list_of(found)
    if names:
        taken = [_named(found, name, where, table) for name in names]
        twice = [name for name, key in zip(names, taken, strict=True) if taken.count(key) > 1]
        if twice:
            raise data_error(where, f"has one series for {listed(map(repr, twice))}", f"it holds {table}")
        return taken, ""
    if len(found) == 1:
        return list(found), ""
    sound = {key: headers for key, headers in found.items() if not _beside(headers)} or dict(found)
    counts = {key: sum(len(header.slices) for header in headers) for key, headers in sound.items()}
    most = [key for key, count in counts.items() if count == max(counts.values())]
    if len(most) > 1:
        what = f"holds {len(most)} series of {max(counts.values())} slices, so which is meant is not clear: {table}"
        raise data_error(where, what, _CHOOSE)
    return (
        most,
        f"of {len(found)} series the one with the most slices is taken, {described(found[most[0]])}; all: {table}",
    )


def list_of(found: Mapping[str, Sequence[Header]]) -> str:
    """Every series with modality, description, size and UID; the first of very many."""
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(described(headers) for headers in list(found.values())[:_SHOWN]) + more


def _beside(headers: Sequence[Header]) -> bool:
    """Localisers, colour pictures and others that are no volume of grey values."""
    return all(
        _LOCALISER & set(header.image_type) or header.photometric.startswith(("RGB", "YBR")) for header in headers
    )


def _named(found: Mapping[str, Sequence[Header]], name: str, where: Path, table: str) -> str:
    exact = [key for key, headers in found.items() if name in (key, headers[0].series)]
    same = exact or [key for key, headers in found.items() if plain(headers[0].description) == plain(name)]
    part = same or [key for key, headers in found.items() if plain(name) in plain(headers[0].description)]
    if len(part) == 1:
        return part[0]
    what = f"holds {len(part)} series of the description {name!r}" if part else f"holds no series {name!r}"
    raise data_error(where, f"{what}; it holds {table}", _CHOOSE)


def series_in(path: Path, wishes: Wishes) -> tuple[list[Source], str]:
    """The series that is taken from a folder, or from one file; several where several are channels; and what is to be said.

    Raises:
        DataError: if there is none, or the choice is not clear.
    """
    if path.is_file():
        return [Source(path, None, Series((path,), wishes.fixes))], ""
    looked = look(path)
    found = by_series(looked.headers)
    for problem in looked.problems:  # a slice that is lost at an end of the series would not be missed
        raise data_error(*problem)
    if not found:
        kinds = {"seg": "segmentations (SEG)", "rtstruct": "structures (RTSTRUCT)"}
        labels = [kinds[header.kind] for header in looked.headers if header.kind in kinds]
        what = f"holds {labels[0]} and no image" if labels else "holds no DICOM image"
        raise data_error(path, what, "give the folder of a series of images")
    taken, said = choose(found, wishes.names, path)
    return [source_of(found[key], path, wishes) for key in taken], said


def source_of(headers: Sequence[Header], folder: Path, wishes: Wishes) -> Source:
    """A series as a source; its folder is the one that holds all of its files."""
    files = tuple(header.path for header in headers)
    parents = {file.parent for file in files}
    where = (
        files[0] if len(files) == 1 and len(headers[0].slices) > 1 else parents.pop() if len(parents) == 1 else folder
    )
    return Source(where, None, Series(files, wishes.fixes))
