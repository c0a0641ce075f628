"""A repaired copy of a data set: sound files as they are, others repaired where no guess is needed, the rest left out.

The copy is a folder of pairs (images/, labels/) with classes.json, splits.json and groups.json where there is something
to say, and changes.json: for every file where it came from and what was changed. The original is only read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.limits import holding
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import ARRAY_SUFFIX, Source, data_error, is_zarr, shown
from ulna.data.formats.write import write_image, write_labels
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.declared import CLASSES_FILE
from ulna.data.layout.groups import PATIENT
from ulna.data.layout.metadata import SPLIT_FILES, read_json
from ulna.data.layout.pairing import Found, files_in, nearly_named
from ulna.data.layout.splitting import Groups
from ulna.data.quality.copying import about, copy, not_copied, replaced, sidecars, stem_of, true_suffix
from ulna.data.quality.duplicates import find_duplicates
from ulna.data.quality.fixed_splits import fixed_folds, safe_names
from ulna.data.quality.fixes import Change, Values, choose_values, fixed_image, fixed_labels
from ulna.data.quality.merging import numbered_objects
from ulna.data.quality.scan import CaseStats, scan_case
from ulna.data.volume import Meta, Volume
from ulna.errors import DataError, Problem, UsageError, counted
from ulna.recipe import Labels
from ulna.system.files import TEMPORARY, unwritable
from ulna.system.outputs import check_folder
from ulna.system.passed_on import without_places
from ulna.system.progress import track

RECORD = "changes.json"
_TOLD = ("name", "description", "reference", "licence", "license", "release", "citation")


class Repair(NamedTuple):
    """What was done.

    Args:
        folder: the repaired copy.
        changes: one line per change: the file in the copy, and what was changed.
        left_out: what could not be repaired, and is not in the copy.
    """

    folder: Path
    changes: tuple[str, ...]
    left_out: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "changes": list(self.changes),
            "left_out": [problem._asdict() for problem in self.left_out],
        }


class _Made(NamedTuple):
    """One case in the copy, as paths in its folder."""

    images: tuple[Path, ...]
    label: Path
    changes: list[tuple[Path, Change]]
    scan: CaseStats
    beside: dict[Path, Path]  # file -> the one beside an image or a label map that it is a copy of
    not_beside: list[Problem]  # of those that could not be copied


def check_target(out: Path, root: Path) -> None:
    """Refuse a folder that exists, or lies in the data set.

    Raises:
        UsageError: with the reason.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out}: is there already; --fix never overwrites, choose another folder")
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(root)):
        raise UsageError(f"{out}: lies in the data set itself; choose a folder beside it")
    check_folder(out, remedy="choose another folder")


def repair(
    dataset: Dataset, scans: Sequence[CaseStats], copies: Groups, problems: Sequence[Problem], out: Path
) -> Repair:
    """Write the repaired copy, whole or not at all.

    Args:
        scans: of all cases.
        copies: cases that show one image; no set of a given split keeps what another has.
        problems: of the folder, from `Dataset.scan`; those of single files are found again, case by case.

    Raises:
        UsageError: if nothing is left, or `out` cannot be written.
    """
    check_target(out, dataset.root)
    temporary = out.with_name(f"{TEMPORARY}{os.getpid()}-{out.name}")
    try:
        for name in ("images", "labels"):
            (temporary / name).mkdir(parents=True)
        made = _fill(dataset.grouped(copies), scans, problems, temporary)
        temporary.rename(out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made._replace(folder=out)


def _fill(dataset: Dataset, scans: Sequence[CaseStats], problems: Sequence[Problem], folder: Path) -> Repair:
    dataset, renamed = _paired(dataset)
    names = safe_names(case.id for case in dataset.cases)
    values = choose_values(_label_maps(dataset.cases), dataset.labels)
    if dataset.labels is None and numbered_objects(scans):
        values = values._replace(numbers={}, names=("object",), why_not=None, ask="", objects=True)
    usual = _usual_kind(dataset, scans)
    made: dict[str, _Made] = {}
    left: list[Problem] = []
    for case in track(dataset.cases, "repairing"):
        work = folder / ".case"
        try:
            one = _write_case(case, names[case.id], values, dataset.labels, usual, work)
            for file in (*one.images, one.label, *one.beside):
                (work / file).rename(folder / file)
            made[case.id] = one
            left += one.not_beside
        except DataError as error:
            left += error.problems
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if not made:
        raise DataError(
            [Problem(str(dataset.root), "no case can be repaired", "see the problems without --fix"), *left],
            dataset.root,
        )
    # images that could not be read before may show what others show
    dataset = dataset.grouped(find_duplicates(dataset, [one.scan for one in made.values()]).groups)
    folds, split_changes = fixed_folds(dataset, {id: names[id] for id in made})
    groups = {names[case.id]: entry for case in dataset.cases if case.id in made and (entry := _group_entry(case))}
    _declare(folder, dataset, values, folds, groups)
    told_of = []
    for path in about(dataset):
        left += (failed := not_copied(path, folder / path.name))
        told_of += [] if failed else [path]
    changes = [(Path(CLASSES_FILE), Change(values.ask))] if values.ask else []
    changes += [entry for one in made.values() for entry in one.changes]
    for id in made:
        if names[id] != id:
            changes.append((Path("labels") / names[id], Change(f"the case was called {shown(id)!r}")))
        if id in renamed:
            changes.append((Path("labels") / names[id], Change(f"paired with {renamed[id]}, which is nearly its name")))
    changes += [(Path("splits.json"), Change(what)) for what in split_changes]
    handled = {str(dataset.root / name) for name in SPLIT_FILES} | {
        str(case.images[0]) for case in dataset.cases if case.id in made
    }
    handled |= {problem.file for problem in left}
    left += [problem for problem in problems if problem.file not in handled]
    if values.why_not:
        left.append(Problem(str(dataset.root), *values.why_not))
    _record(folder, dataset, made, told_of, changes, left)
    return Repair(folder, tuple(f"{file.as_posix()}: {change.what}" for file, change in changes), tuple(left))


def _paired(dataset: Dataset) -> tuple[Dataset, dict[str, str]]:
    """Images without a label map take the one whose name is nearly theirs."""
    used = {case.label.path for case in dataset.labelled if case.label is not None}
    spare: dict[str, Path] = {}
    for name in ("labels", "labelsTr"):
        if (dataset.root / name).is_dir():
            files = files_in(Found(dataset.root), dataset.root / name)
            spare |= {id: path for id, path in files.items() if path not in used}
    near = nearly_named([case.id for case in dataset.cases if case.label is None], spare)
    cases = [replace(case, label=Source(spare[near[case.id]])) if case.id in near else case for case in dataset.cases]
    return replace(dataset, cases=tuple(cases)), {id: spare[name].name for id, name in near.items()}


def _label_maps(cases: Sequence[Case]) -> Iterator[Volume]:
    for case in cases:
        with suppress(DataError):
            if case.label is not None:
                yield case.read_labels()


def _usual_kind(dataset: Dataset, scans: Sequence[CaseStats]) -> tuple[int, int]:
    """Channels and dimensions that most images have."""
    kinds = Counter((len(dataset.channel_names or ()) or one.channels, one.spatial_dims) for one in scans if one.size)
    return kinds.most_common(1)[0][0] if kinds else (1, 2)


def _write_case(
    case: Case, name: str, values: Values, declared: Labels | None, usual: tuple[int, int], folder: Path
) -> _Made:
    if case.label is None:
        raise data_error(case.images[0], "has no label map", "add the label map, or take the image out")
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    changes: list[tuple[Path, Change]] = []
    try:
        files, label, scan = _write_files(case, name, values, declared, usual, folder, changes)
    except DataError as error:
        raise DataError([_of_original(problem, case, folder) for problem in error.problems]) from None
    relative = [(file.relative_to(folder), change) for file, change in changes]
    beside: dict[Path, Path] = {}
    not_beside: list[Problem] = []
    for file, source in zip((*files, label), (*case.images, case.label), strict=True):
        if any(image.series is not None for image in case.images):  # a file beside it may hold its header
            break
        for path, ending in sidecars(source):
            copied = file.with_name(stem_of(file) + ending)
            if not (failed := not_copied(path, copied)):
                beside[copied.relative_to(folder)] = path
            not_beside += failed
    images = tuple(file.relative_to(folder) for file in files)
    return _Made(images, label.relative_to(folder), relative, scan, beside, not_beside)


def _of_original(problem: Problem, case: Case, folder: Path) -> Problem:
    """A fault of a file in the copy, told of the file that it was made from: the copy is gone when it is read."""
    path = Path(problem.file)
    if not path.is_relative_to(folder):
        return problem
    if path.parent.name == "labels" and case.label is not None:
        return problem._replace(file=shown(case.label))
    channel = re.search(r"_(\d{4})\.[^/]*$", path.name) if len(case.images) > 1 else None
    number = int(channel[1]) if channel and int(channel[1]) < len(case.images) else 0
    return problem._replace(file=shown(case.images[number]))


def _write_files(
    case: Case,
    name: str,
    values: Values,
    declared: Labels | None,
    usual: tuple[int, int],
    folder: Path,
    changes: list[tuple[Path, Change]],
) -> tuple[list[Path], Path, CaseStats]:
    """Images and label map of a case, as far as they can be repaired, and what they are then.

    Raises:
        DataError: if something is wrong still.
    """
    files = []
    for number, source in enumerate(case.images):
        stem = f"{name}_{number:04d}" if len(case.images) > 1 else name
        files.append(_write_image(source, folder / "images" / stem, changes, usual[1]))
    assert case.label is not None
    image = read_image([Source(file) for file in files], usual[1])
    if (image.channels, image.spatial_dims) != usual:
        channels = counted(image.channels, "channel")
        what = f"is {image.spatial_dims}D with {channels}, most cases are {usual[1]}D with {usual[0]}"
        raise data_error(case.images[0], what, "keep such cases in a data set of their own")
    of_series = case.images[0].series is not None
    with holding(2 * image.array.nbytes):
        label = _write_label(case.label, folder / "labels" / name, image, values, declared, changes, of_series)
    made = Case(name, tuple(map(Source, files)), Source(label), spatial_dims=usual[1])
    found = scan_case(made, _declared(values, declared))
    if found.problems:
        raise DataError(found.problems)
    return files, label, replace(found, case=case.id)


def _write_image(source: Source, stem: Path, changes: list[tuple[Path, Change]], spatial_dims: int) -> Path:
    if source.series is not None:  # the copy is of pairs: a series becomes one file
        written = write_image(stem, fixed_image(read_image([source], spatial_dims))[0])
        changes.append((written, Change("was a DICOM series")))
        return written
    suffix = true_suffix(source, changes, stem)
    copied = stem.with_name(stem.name + suffix)
    if suffix != ARRAY_SUFFIX:
        copy(source.path, copied)
        volume = read_image([Source(copied)], spatial_dims)
    else:
        volume = read_image([source], spatial_dims)
    fixed, made = fixed_image(volume)
    if not made and suffix != ARRAY_SUFFIX:
        return copied
    written = replaced(copied, partial(write_image, stem, fixed), made)
    changes += [(written, change) for change in made]
    return written


def _write_label(
    source: Source,
    stem: Path,
    image: Volume,
    values: Values,
    declared: Labels | None,
    changes: list[tuple[Path, Change]],
    of_series: bool,
) -> Path:
    as_it_is = (source.path.is_file() or is_zarr(source.path)) and source.row is None and not of_series
    if as_it_is:
        copied = stem.with_name(stem.name + true_suffix(source, changes, stem))
        copy(source.path, copied)
        volume = read_labels(Source(copied), image.spatial_dims)
    else:
        volume = read_labels(source, image.spatial_dims)
    if of_series:
        volume = replace(onto_grid(volume, image), meta=Meta())
    if source.row is not None:
        volume = replace(volume, meta=Meta(format="npy"))
    fixed, made = fixed_labels(volume, image, values, declared)
    if as_it_is and not made:
        return copied
    write = partial(write_labels, stem, fixed.array[0] if len(fixed.array) == 1 else fixed.array, fixed)
    written = replaced(copied, write, made) if as_it_is else write()
    made = [*made, Change("lies on the voxels of its DICOM series")] if of_series else made
    changes += [(written, change) for change in made]
    return written


def _group_entry(case: Case) -> str | dict[str, str] | None:
    """What groups.json says of a case; None for nothing."""
    if not case.fields:
        return case.group
    return {**({} if case.group is None else {PATIENT: case.group}), **dict(case.fields)}


def _declared(values: Values, declared: Labels | None) -> Labels | None:
    return Labels(names=("background", *values.names)) if values.names else declared


def _declare(
    folder: Path,
    dataset: Dataset,
    values: Values,
    folds: Sequence[dict[str, list[str]]],
    groups: Mapping[str, str | dict[str, str]],
) -> None:
    """Classes, channels, splits and patients, as far as there is something to declare; and what is said of the data."""
    labels = _declared(values, dataset.labels)
    if labels is not None:
        _json(folder / CLASSES_FILE, labels.declared())
    told: dict[str, Any] = _told_of(dataset.root)
    if dataset.channel_names:
        told["channel_names"] = {str(number): name for number, name in enumerate(dataset.channel_names)}
    if told:
        _json(folder / "dataset.json", told)
    if folds:
        _json(folder / "splits.json", folds[0] if len(folds) == 1 else folds)
    if groups:
        _json(folder / "groups.json", groups)


def _told_of(root: Path) -> dict[str, Any]:
    """What dataset.json says of where the data come from."""
    found = read_json(root / "dataset.json", []) if (root / "dataset.json").is_file() else None
    return {key: found[key] for key in _TOLD if isinstance(found.get(key), str)} if isinstance(found, Mapping) else {}


def _record(
    folder: Path,
    dataset: Dataset,
    made: Mapping[str, _Made],
    told_of: Sequence[Path],
    changes: Sequence[tuple[Path, Change]],
    left: Sequence[Problem],
) -> None:
    """For every file where it came from, what was changed, and what is not here."""
    origin: dict[str, str] = {}
    told = without_places(dataset.root)
    by_id = {case.id: case for case in dataset.cases}
    for id, one in made.items():
        case = by_id[id]
        for file, source in zip((*one.images, one.label), (*case.images, case.label), strict=True):
            origin[file.as_posix()] = told(shown(source))
        origin |= {file.as_posix(): told(shown(path)) for file, path in one.beside.items()}
    origin |= {path.name: told(shown(path)) for path in told_of}
    _json(
        folder / RECORD,
        {
            "made_from": shown(dataset.root.resolve().name),
            "changes": [
                {"file": file.as_posix(), "what": change.what, **({"values": change.values} if change.values else {})}
                for file, change in changes
            ],
            "left_out": [{name: told(text) for name, text in problem._asdict().items()} for problem in left],
            "files": origin,
        },
    )


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
