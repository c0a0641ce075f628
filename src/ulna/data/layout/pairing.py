"""Images and label maps matched by name: CASE.png with CASE.png, or CASE_0000.png, CASE_0001.png with CASE.png."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.dicom.finding import NAMED, holds_dicom, known_header
from ulna.data.formats.dicom.header import is_dicom
from ulna.data.formats.source import IMAGE_SUFFIXES, Source, beside, case_name, composed, is_zarr, shown, suffix_of
from ulna.data.layout.case import Case
from ulna.errors import DataError, Problem, counted, listed
from ulna.recipe import Labels

_CHANNEL = re.compile(r"^(.+)_(\d{4})$")
_MOST_CHANNELS = 16  # more `_0000` files of one name are the frames of a film
_ROLE = re.compile(r"(_(mask|masks|label|labels|seg|segmentation|gt|groundtruth|ground_truth|annotation|image|img))+$")
_KINDS = 6  # extensions that are named
_NOT_YET = (".mhd", ".nhdr", ".hdr", ".img", ".gif", ".webp")


@dataclass
class Found:
    """A data set while it is being looked through."""

    root: Path
    wishes: Wishes = field(default_factory=Wishes)
    layout: str = ""
    cases: list[Case] = field(default_factory=list)
    labels: Labels | None = None
    declared_in: str | None = (
        None  # the file that says the classes; None: the layout is known to hold them, or nothing does
    )
    channel_names: tuple[str, ...] | None = None
    sets: dict[str, list[str]] | None = None
    groups: dict[str, str] = field(default_factory=dict)  # case id -> patient, as far as the layout tells
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, where: object, what: str, remedy: str) -> None:
        """Keep one problem."""
        self.problems.append(Problem(shown(where), what, remedy))


def convert() -> str:
    return f"convert it to one of {', '.join(IMAGE_SUFFIXES)}"


def files_in(found: Found, folder: Path) -> dict[str, Path]:
    """Image files (and OME-Zarr folders) of a folder by name without extension; two of one name are a problem."""
    files: dict[str, Path] = {}
    spare: Counter[str] = Counter()
    folders = 0
    hidden = []
    for path in sorted(folder.iterdir()):
        suffix = suffix_of(path)
        if beside(path.name):
            if suffix in IMAGE_SUFFIXES and not path.name.startswith("._"):  # which macOS leaves on foreign disks
                hidden.append(path.name)
            continue
        if is_zarr(path) and not path.is_dir():
            found.wrong(path, "is a file, and OME-Zarr is a folder", "unpack it into a folder of that name")
        elif is_zarr(path):
            _add(found, files, path)
        elif path.is_dir() and suffix in IMAGE_SUFFIXES:
            found.notes.append(f"{folder.name}/{path.name} is a folder, it is not read")
        elif path.is_dir() and holds_dicom(path):
            files[composed(path.name)] = path
        elif path.is_dir():
            folders += 1
        elif suffix in NAMED or (suffix not in (*IMAGE_SUFFIXES, *_NOT_YET) and is_dicom(path)):
            _add(found, files, path)
        elif suffix not in (*IMAGE_SUFFIXES, *_NOT_YET):
            spare[suffix or "without extension"] += 1
        elif suffix in _NOT_YET:
            found.wrong(path, f"has the extension {suffix!r}, which is not read", convert())
        else:
            _add(found, files, path)
    if hidden:
        what = f"holds {counted(len(hidden), 'image')}, by the name none of the data ({hidden[0]})"
        found.notes.append(f"{folder.name}/ {what}; they are not read")
    if spare:
        kinds = listed((f"{count} {suffix}" for suffix, count in spare.most_common()), most=_KINDS)
        found.notes.append(f"{folder.name}/ holds files that are not read: {kinds}")
    if folders:
        what = "1 folder that is" if folders == 1 else f"{folders} folders that are"
        found.notes.append(f"{folder.name}/ holds {what} not read")
    return files


def _add(found: Found, files: dict[str, Path], path: Path) -> None:
    if case_name(path) in files:
        found.wrong(path, f"has the name of {files[case_name(path)].name}", "keep one file per case")
    else:
        files[case_name(path)] = path


def image_sources(found: Found, paths: Iterable[Path]) -> tuple[Source, ...]:
    """The sources of a case: its files, and the series of its folders; none where they cannot be told, which is a problem."""
    sources: list[Source] = []
    for path in paths:
        if is_zarr(path) or (not path.is_dir() and suffix_of(path) in IMAGE_SUFFIXES):
            sources.append(Source(path))
            continue
        try:
            series, said = series_in(path, found.wishes)
        except DataError as error:
            found.problems += error.problems
            return ()
        sources += series
        if said:
            found.notes.append(f"{shown(path)}: {said}")
    return tuple(sources)


def grouped(
    found: Found, images: Mapping[str, Path], labels: Iterable[str], channels: int | None
) -> dict[str, list[Path]]:
    """Case id -> its files, one per channel.

    A name that a label file has is a case. `CASE_0000` belongs to CASE where a label file is named CASE, or, without
    any label, where every name ends so and every case has the same channels.
    """
    named = set(labels)
    stems: dict[str, list[int]] = {}
    plain = []
    for name in images:
        match = _CHANNEL.match(name)
        if match and name not in named:
            stems.setdefault(match[1], []).append(int(match[2]))
        else:
            plain.append(name)
    if named:
        split = any(stem in named for stem in stems)
    else:
        counts = {len(indices) for indices in stems.values()}
        regular = all(sorted(indices) == list(range(len(indices))) for indices in stems.values())
        few = counts == {channels} if channels else max(counts, default=0) <= _MOST_CHANNELS
        split = not plain and len(counts) == 1 and regular and few
    if not split:
        return {name: [path] for name, path in images.items()}
    cases = {name: [images[name]] for name in plain}
    most = max(len(indices) for indices in stems.values())
    for stem, indices in stems.items():
        if stem in cases:
            first = images[f"{stem}_{indices[0]:04d}"]
            what = f"stands beside {first.name}, both would be the case {stem!r}"
            found.wrong(images[stem], what, "keep the one file or the files of its channels")
            continue
        missing = sorted(set(range(max(most, max(indices) + 1))) - set(indices))
        if missing:
            folder = images[f"{stem}_{indices[0]:04d}"].parent
            what = f"has no file for channel {', '.join(f'{index:04d}' for index in missing)}"
            found.wrong(folder / stem, what, "add the file, or take the case out")
        cases[stem] = [images[f"{stem}_{index:04d}"] for index in sorted(indices)]
    return cases


def pairs(found: Found, images: str, labels: str, need_labels: bool, channels: int | None) -> set[str]:
    found.layout = found.layout or "pairs"
    image_folder, label_folder = found.root / images, found.root / labels
    label_files = files_in(found, label_folder) if label_folder.exists() else {}
    cases = grouped(found, files_in(found, image_folder), label_files, channels)
    for case, paths in cases.items():
        label = label_files.get(case)
        if sources := image_sources(found, paths):
            found.cases.append(Case(case, sources, Source(label) if label else None))
    if of_slices := _slices_of_one_series(found.cases):
        what = (
            f"holds {len(of_slices)} slices of one series, such as {of_slices[0].name}, each of which would be a case"
        )
        found.wrong(image_folder, what, "put the slices of every case into a folder of its own, images/CASE/")
    if need_labels:
        _alone(found, {case: paths[0] for case, paths in cases.items()}, label_files, images, labels)
    return {images, labels}


def _slices_of_one_series(cases: Iterable[Case]) -> list[Path]:
    """Files that would be cases of their own and are slices of one volume."""
    held: dict[str, list[Path]] = {}
    for case in cases:
        for source in case.images:
            if source.series is not None and len(source.files) == 1:
                with suppress(DataError):  # it is told where the case is read
                    header = known_header(source.files[0])
                    if header.series and len(header.slices) == 1 and header.slices[0].position is not None:
                        held.setdefault(header.series, []).append(source.files[0])
    return next((files for files in held.values() if len(files) > 1), [])


def _alone(
    found: Found, image_files: Mapping[str, Path], label_files: Mapping[str, Path], images: str, labels: str
) -> None:
    """Images without a label map and label maps without an image; names that nearly agree are told."""
    lone = {case: path for case, path in image_files.items() if case not in label_files}
    spare = {case: path for case, path in label_files.items() if case not in image_files}
    near = nearly_named(lone, spare)
    for case, path in lone.items():
        if case in near:
            what = f"has no label map {labels}/{case}.*, but {labels}/{spare[near[case]].name} is nearly its name"
            found.wrong(path, what, "give both the same name")
        else:
            found.wrong(path, f"has no label map {labels}/{case}.*", "add the label map, or take the image out")
    for case, path in spare.items():
        if case not in near.values():
            found.wrong(path, f"has no image {images}/{case}.*", "add the image, or take the label map out")


def nearly_named(images: Iterable[str], labels: Iterable[str]) -> dict[str, str]:
    """Image -> the one label map whose name differs in spaces, case, or an ending such as _mask only.

    Example:
        >>> nearly_named(["Scan 1", "b", "c"], ["scan_1_mask", "b_seg", "B-label"])
        {'Scan 1': 'scan_1_mask'}
    """
    stems: dict[str, list[str]] = {}
    for name in labels:
        stems.setdefault(_stem(name), []).append(name)
    twins: dict[str, list[str]] = {}
    for name in images:
        twins.setdefault(_stem(name), []).append(name)
    return {names[0]: stems[stem][0] for stem, names in twins.items() if len(names) == len(stems.get(stem, ())) == 1}


def _stem(name: str) -> str:
    return _ROLE.sub("", re.sub(r"[\s_.-]+", "_", name.casefold()).strip("_"))
