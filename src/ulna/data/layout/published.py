"""Data sets as their sites hand them out, recognised by the names of their files: CVC-ClinicDB, LiTS and KiTS19.

    Original/1.tif, Ground Truth/1.tif                             CVC-ClinicDB (bernal2015), 612 frames
    volume-0.nii, segmentation-0.nii, in any folders               LiTS (bilic2023), two training batches
    case_00000/imaging.nii.gz, case_00000/segmentation.nii.gz      KiTS19 (heller2019), also under data/

What the sites say of classes, channels and patients is known then; a classes.json or groups.json takes its place.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ulna.data.formats.source import Source, beside, shown, suffix_of
from ulna.data.layout.case import Case
from ulna.data.layout.pairing import Found, pairs
from ulna.errors import counted, listed
from ulna.recipe import Labels

FRAMES, MASKS = "Original", "Ground Truth"
# The last frame of each of the 29 sequences of CVC-ClinicDB: frames 1-25 are the first, 26-50 the second, and so on (the
# table of frames that goes with bernal2015).
LAST_FRAMES = (
    25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317,
    342, 363, 383, 408, 428, 447, 466, 478, 503, 528, 546, 571, 591, 612,
)  # fmt: skip
_VOLUME = re.compile(r"(test-)?volume-(\d+)\.nii(\.gz)?$")
_SEGMENTATION = re.compile(r"segmentation-(\d+)\.nii(\.gz)?$")
_DEEPEST = 6  # folders; the batches of LiTS are packed five deep
_CASE = re.compile(r"case_(\d{5})$")
_IMAGES, _LABELS = ("imaging.nii.gz", "imaging.nii"), ("segmentation.nii.gz", "segmentation.nii")
_FIRST_TEST = 210  # of KiTS19: the cases from here on were published without segmentations
_LIDC = re.compile(r"(LIDC-IDRI-\d{4})(?!\d)", re.IGNORECASE)


def published(found: Found, names: Iterable[str], need_labels: bool, channels: int | None) -> set[str]:
    """Fill in the cases of a data set of these three; the names that were used, none where it is another."""
    names = set(names)
    if FRAMES in names and (MASKS in names or not need_labels) and (found.root / FRAMES).is_dir():
        return _cvc_clinicdb(found, need_labels, channels)
    return _kits(found, names, need_labels) or _lits(found, names, need_labels)


def _cvc_clinicdb(found: Found, need_labels: bool, channels: int | None) -> set[str]:
    found.layout = "cvc-clinicdb"
    used = pairs(found, FRAMES, MASKS, need_labels, channels)
    found.labels = Labels(names=("background", "polyp"))
    frames = {case.id: int(case.id) for case in found.cases if case.id.isdecimal()}
    numbered = len(frames) == len(found.cases) and all(0 < frame <= LAST_FRAMES[-1] for frame in frames.values())
    what = f"CVC-ClinicDB ({FRAMES}/, {MASKS}/), {counted(len(found.cases), 'frame')}"
    if numbered:
        found.groups = {id: f"sequence {sequence_of(frame)}" for id, frame in frames.items()}
        what += f" of {len(set(found.groups.values()))} sequences, each a group"
    else:
        what += (
            "; their names are not the numbers 1 to 612, so nothing says which sequence they are of: see groups.json"
        )
    found.notes.append(f"layout: {what}")
    return used


def sequence_of(frame: int) -> int:
    """The sequence, 1 to 29, of a frame of CVC-ClinicDB, 1 to 612.

    Example:
        >>> sequence_of(1), sequence_of(25), sequence_of(26), sequence_of(612)
        (1, 1, 2, 29)
    """
    return bisect_left(LAST_FRAMES, frame) + 1


def _lits(found: Found, names: Iterable[str], need_labels: bool) -> set[str]:
    volumes: dict[str, Path] = {}
    segmentations: dict[str, Path] = {}
    others: Counter[str] = Counter()
    for path in _files_below(found.root, names):
        image, label = _VOLUME.match(path.name), _SEGMENTATION.match(path.name)
        if image is None and label is None:
            others[suffix_of(path) or "without extension"] += 1
            continue
        id = f"{image[1] or ''}volume-{image[2]}" if image else f"volume-{label[1] if label else ''}"
        files = volumes if image else segmentations
        if id in files:
            found.wrong(path, f"has the number of {files[id]}", "keep one file of it")
        files.setdefault(id, path)
    if not volumes:
        return set()
    found.layout, found.labels = "lits", Labels(names=("background", "liver", "tumour"))
    found.channel_names = ("CT",)
    for id, path in volumes.items():
        segmentation = segmentations.get(id)
        found.cases.append(Case(id, (Source(path),), Source(segmentation) if segmentation else None))
        if need_labels and segmentation is None and not id.startswith("test-"):
            number = id.removeprefix("volume-")
            found.wrong(path, f"has no segmentation-{number}.nii", "add the segmentation, or take the volume out")
    for id, path in segmentations.items() if need_labels else ():
        if id not in volumes:
            found.wrong(path, f"has no {id}.nii", "add the volume, or take the segmentation out")
    tests = sum(id.startswith("test-") for id in volumes)
    folders = sorted({shown(path.parent.name) for id, path in volumes.items() if not id.startswith("test-")})
    what = f"LiTS (volume-N.nii, segmentation-N.nii), {counted(len(volumes) - tests, 'volume')}"
    what += (
        f" in {' and '.join(folders)}" if len(folders) == 2 else f" in {len(folders)} folders" if folders[2:] else ""
    )
    found.notes.append(f"layout: {what}" + (f"; test volumes without label maps: {tests}" if tests else ""))
    if others:
        found.notes.append(f"files that are not read: {listed(f'{n} {kind}' for kind, n in others.most_common(6))}")
    return {name for name in names if (found.root / name).is_dir()}


def _files_below(folder: Path, names: Iterable[str], depth: int = 0) -> Iterator[Path]:
    """The files under some entries of a folder, by their names; links to folders are followed no further than real ones."""
    for name in sorted(names):
        path = folder / name
        if not path.is_dir():
            yield path
        elif depth < _DEEPEST:
            yield from _files_below(path, [one.name for one in path.iterdir() if not beside(one.name)], depth + 1)


def _kits(found: Found, names: set[str], need_labels: bool) -> set[str]:
    inside = next((part for part in ("", "data", "dataset") if _case_folders(found.root / part)), None)
    if inside is None:
        return set()
    found.layout, found.labels = "kits", Labels(names=("background", "kidney", "tumour"))
    found.channel_names = ("CT",)
    tests = 0
    for folder in _case_folders(found.root / inside):
        image, label = (_first(folder, wanted) for wanted in (_IMAGES, _LABELS))
        if image is None:
            remedy = "download it with KiTS19's own script (starter_code.get_imaging), or take the case out"
            found.wrong(folder, f"holds no {_IMAGES[0]}", remedy)
            continue
        is_test = label is None and int(folder.name.removeprefix("case_")) >= _FIRST_TEST
        tests += is_test
        if need_labels and label is None and not is_test:
            found.wrong(folder, f"holds no {_LABELS[0]}", "add the segmentation, or take the case out")
        found.cases.append(Case(folder.name, (Source(image),), Source(label) if label else None))
    what = f"KiTS19 (case_N/{_IMAGES[0]}, {_LABELS[0]}), {counted(len(found.cases), 'case')}"
    found.notes.append(f"layout: {what}" + (f"; without label maps: {tests}" if tests else ""))
    return names if not inside else {inside}


def _case_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    named = [path for path in sorted(folder.iterdir()) if _CASE.match(path.name) and path.is_dir()]
    return named if any(_first(path, (*_IMAGES, *_LABELS)) for path in named) else []


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def patients_in_names(found: Found) -> None:
    """Crops of LIDC-IDRI (armato2011) are named after their patient, such as LIDC-IDRI-0001_nodule_2: each is a group."""
    patients = {case.id: named[1].upper() for case in found.cases if (named := _LIDC.match(case.id))}
    if not found.groups and patients and len(patients) == len(found.cases):
        found.groups = patients
        count = len(set(patients.values()))
        found.notes.append(
            f"layout: LIDC-IDRI, {counted(len(patients), 'crop')} of {counted(count, 'patient')} by their "
            "names, each patient a group"
        )
