"""A tree of DICOM files: series, and the SEG and RTSTRUCT files that refer to them, wherever they lie.

    DATA/CASE/...          every folder is a case, whatever folders lie in it
    STUDY/...              a folder of one study is one case
    DATA/COLLECTION/CASE/  the one folder of all patients is looked into: downloads from TCIA have one

Labels find their series by the UIDs that they hold, never by names of folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.data.formats.dicom.choosing import Wishes, choose, list_of, source_of
from ulna.data.formats.dicom.finding import Looked, by_series, described, look
from ulna.data.formats.dicom.header import Header
from ulna.data.formats.source import IMAGE_SUFFIXES, Series, Source, beside, composed, shown, suffix_of
from ulna.data.layout.case import Case
from ulna.data.layout.pairing import Found
from ulna.data.layout.structures import LABEL_KINDS, name_structures
from ulna.errors import DataError, counted, listed

_KINDS = {"seg": "SEG", "rtstruct": "RTSTRUCT"}


class _Place(NamedTuple):
    """Where a case lies: its folder, and the name of the folder under the root, whose cases are of one patient."""

    folder: Path
    group: str


def dicom_tree(found: Found, need_labels: bool) -> set[str]:
    """The cases of a tree of DICOM files; the names in the folder that were looked through, or none without any DICOM."""
    looked, wishes = look(found.root), found.wishes
    if not looked.headers and not looked.problems:
        return set()
    found.layout = "dicom"
    found.problems += looked.problems
    _tell_others(found, looked)
    base = _base(found.root, looked)
    _tell_skipped(found, looked, base, need_labels)
    cases, places = _cases(found, looked, base)
    sound = len(found.problems)
    labels = _matched(found, looked, cases, places, base)
    if not need_labels:
        _only_noted(found, sound)
    with_labels = {places[name].group for name, _ in labels}
    label_files: dict[str, Sequence[Path]] = {}
    label_sources: dict[str, Source] = {}
    for name, series in cases.items():
        folder, group = places[name]
        labelled = [key for key in series if labels.get((name, key))]
        for id, keys, said in _taken(found, name, series, labelled, wishes, folder):
            sources = tuple(source_of(series[key], folder, wishes) for key in keys)
            files = tuple(header.path for key in keys for header in labels.get((name, key), ()))
            if said:
                found.notes.append(f"{shown(id)}: {said}")
            if files and sources[0].series is not None:
                label_files[id] = files
                on = next(n for n, key in enumerate(keys) if labels.get((name, key)))
                grid = sources[on].series
                assert grid is not None
                label_sources[id] = Source(files[0], None, Series(files, wishes.fixes, grid.files))
            elif need_labels and group in with_labels and group != id:
                found.notes.append(f"{shown(id)}: a study without labels is left out")
                continue
            elif need_labels:
                found.wrong(
                    folder, "has no SEG and no RTSTRUCT that refers to its series", "add it, or take the case out"
                )
            found.cases.append(Case(id, sources, None, group if id != group else None))
    sound, told = len(found.problems), len(found.notes)
    named = name_structures(found, label_files, label_sources)
    if not need_labels:
        del found.notes[told:]  # on classes, which are those of the run
        _only_noted(found, sound)
    found.cases = [Case(c.id, c.images, named.get(c.id), c.group) for c in found.cases]
    if len(wishes.series) > 1:
        found.channel_names = wishes.series
    return {path.relative_to(found.root).parts[0] for path in (*(h.path for h in looked.headers), *looked.others)}


def cases_lie_in(root: Path) -> Path:
    """The folder in a tree whose folders are its cases: the root, or the one folder in it that holds all patients."""
    return _base(root, look(root))


def _base(root: Path, looked: Looked) -> Path:
    images = [header for header in looked.headers if header.kind == "image"]
    base = root
    while len({header.patient for header in images} - {""}) > 1:
        places = {header.path.relative_to(base).parts for header in images}
        if len({parts[0] for parts in places}) > 1 or any(len(parts) < 3 for parts in places):
            break
        base /= places.pop()[0]
    return base


def _only_noted(found: Found, sound: int) -> None:
    """Make notes of the problems that came after the first `sound` ones: of labels, where images alone are wanted."""
    for problem in found.problems[sound:]:
        found.notes.append(f"{shown(Path(problem.file).relative_to(found.root))}: {problem.what}; it is not read")
    del found.problems[sound:]


def _tell_others(found: Found, looked: Looked) -> None:
    images = [path for path in looked.others if suffix_of(path) in IMAGE_SUFFIXES]
    if images:
        names = listed((path.relative_to(found.root) for path in images), most=3)
        found.notes.append(f"not read beside DICOM files: {counted(len(images), 'image')} of other formats, {names}")
    if not any(header.kind == "image" for header in looked.headers):
        kinds = sorted({_KINDS.get(header.kind, header.kind) for header in looked.headers})
        found.wrong(
            found.root, f"holds no DICOM image, only {listed(kinds) or 'files that cannot be read'}", "add the series"
        )


def _tell_skipped(found: Found, looked: Looked, base: Path, need_labels: bool) -> None:
    """Name every folder beside those of cases that holds no image (nor labels, where these are needed), and what it holds."""
    kinds = {**_KINDS, "directory": "an index (DICOMDIR)", "other": "DICOM files without pixels"}
    wrong = [Path(problem.file) for problem in looked.problems]
    for folder in sorted(path for path in base.iterdir() if path.is_dir() and not beside(path.name)):
        inside = [header for header in looked.headers if header.path.is_relative_to(folder)]
        used = {"image", *LABEL_KINDS} if need_labels else {"image"}
        if any(header.kind in used for header in inside) or any(path.is_relative_to(folder) for path in wrong):
            continue
        others = sum(path.is_relative_to(folder) for path in looked.others)
        what = [
            *sorted({kinds[header.kind] for header in inside}),
            *([f"{others} files that are no DICOM"] if others else []),
        ]
        found.notes.append(f"{shown(folder.name)}/: skipped, it holds {listed(what) or 'no file'} and no image")


def _cases(found: Found, looked: Looked, base: Path) -> tuple[dict[str, dict[str, list[Header]]], dict[str, _Place]]:
    """Case -> its series: the folders in the base, or the base itself where its images are of one study."""
    images = [header for header in looked.headers if header.kind == "image"]
    whole = composed(base.resolve().name)
    studies = {header.study for header in images}
    first = {header.path.relative_to(base).parts[0] for header in images}
    one = len(studies) == 1 and "" not in studies and len(first) > 1
    held: dict[str, list[Header]] = {}
    for header in images:
        parts = header.path.relative_to(base).parts
        held.setdefault(whole if one or len(parts) == 1 else composed(parts[0]), []).append(header)
    cases: dict[str, dict[str, list[Header]]] = {}
    places: dict[str, _Place] = {}
    for name, headers in sorted(held.items()):
        folder = base if one or any(len(h.path.relative_to(base).parts) == 1 for h in headers) else base / name
        for id, some in _by_study(name, headers, folder).items():
            cases[id], places[id] = by_series(some), _Place(folder, name)
    _check_parted(found, cases, places)
    return cases, places


def _by_study(name: str, headers: Sequence[Header], folder: Path) -> dict[str, list[Header]]:
    """The images of a folder by their studies, where each of several studies has a folder of its own."""
    studies: dict[str, dict[str, list[Header]]] = {}
    for header in headers:
        parts = header.path.relative_to(folder).parts
        studies.setdefault(parts[0] if len(parts) > 1 else "", {}).setdefault(header.study, []).append(header)
    uids = [uid for of_folder in studies.values() for uid in of_folder]
    apart = all(len(of_folder) == 1 for of_folder in studies.values()) and len(set(uids)) == len(uids)
    if len(studies) < 2 or "" in studies or "" in uids or not apart:
        return {name: list(headers)}
    return {composed(f"{name}-{sub}"): next(iter(of_folder.values())) for sub, of_folder in studies.items()}


def _check_parted(found: Found, cases: Mapping[str, Mapping[str, list[Header]]], where: Mapping[str, _Place]) -> None:
    """Find series whose slices lie in the folders of two cases."""
    places: dict[str, str] = {}
    for name, series in cases.items():
        for key, headers in series.items():
            other = places.setdefault(key, name)
            if other != name:
                own, theirs = ({one.instance for one in some} for some in (headers, cases[other][key]))
                if own - theirs:
                    what = f"holds slices of a series that {shown(other)}/ holds too"
                    found.wrong(where[name].folder, what, "put all slices of a series into the folder of its case")


def _matched(
    found: Found,
    looked: Looked,
    cases: Mapping[str, Mapping[str, list[Header]]],
    where: Mapping[str, _Place],
    base: Path,
) -> dict[tuple[str, str], list[Header]]:
    """(case, series) -> the label files that refer to it."""
    by_uid: dict[str, list[tuple[str, str]]] = {}
    by_frame: dict[str, list[tuple[str, str]]] = {}
    for name, series in cases.items():
        for key, headers in series.items():
            uids = dict.fromkeys([key, *(header.instance for header in headers)])
            for uid in uids:
                if uid:
                    by_uid.setdefault(uid, []).append((name, key))
            if headers[0].frame_of_reference:
                by_frame.setdefault(headers[0].frame_of_reference, []).append((name, key))
    matched: dict[tuple[str, str], list[Header]] = {}
    for header in looked.headers:
        if header.kind not in LABEL_KINDS:
            continue
        places = dict.fromkeys(place for uid in header.references for place in by_uid.get(uid, ()))
        of_frame = by_frame.get(header.frame_of_reference, []) if header.frame_of_reference else []
        if not places and len(of_frame) == 1:
            places = dict.fromkeys(of_frame)
        own = header.path.relative_to(base).parts[0] if header.path.is_relative_to(base) else ""
        near = [place for place in places if where[place[0]].group == own] or list(places)
        if not near:
            what = f"{'an' if header.kind == 'rtstruct' else 'a'} {_KINDS[header.kind]} that refers to no series that is here"
            found.notes.append(f"{shown(header.path.relative_to(found.root))}: {what}")
        elif len({key for _, key in near}) > 1:
            what = f"refers to {len(near)} series, so which it was drawn on is not clear"
            found.wrong(header.path, what, "take it out, or the other series")
        else:
            for place in near:
                matched.setdefault(place, []).append(header)
    return matched


def _taken(
    found: Found,
    name: str,
    series: Mapping[str, list[Header]],
    labelled: Sequence[str],
    wishes: Wishes,
    folder: Path,
) -> list[tuple[str, list[str], str]]:
    """Id, series and what is to be said, for every case of a folder: what is asked for, what is labelled, else the rule."""
    if not wishes.names and len(labelled) > 1:
        ids = [f"{name}-{number}" for number in range(1, len(labelled) + 1)]
        said = f"one of {len(labelled)} labelled series of {shown(name)}"
        return [
            (id, [key], f"{said}, {described(series[key])}; all: {list_of(series)}")
            for id, key in zip(ids, labelled, strict=True)
        ]
    if not wishes.names and labelled:
        taken = f"the labelled one is taken, {described(series[labelled[0]])}; all: {list_of(series)}"
        said = f"of {len(series)} series {taken}" if len(series) > 1 else ""
        return [(name, list(labelled), said)]
    try:
        keys, said = choose(series, wishes.names, folder)
    except DataError as error:
        found.problems += error.problems
        return []
    return [(name, keys, said)]
