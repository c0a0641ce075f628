"""What is said of a folder in which no layout is found: what it holds, and the nearest layout that is known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ulna.data.formats.source import ARRAY_SUFFIX, IMAGE_SUFFIXES, beside, case_name, data_error, suffix_of
from ulna.data.layout.pairing import Found
from ulna.errors import DataError, Problem
from ulna.system.order import is_run
from ulna.verbs import command

TRAINING = """lay the data out as
    DATA/images/CASE.png   (or .nii.gz, .tif, ...)
    DATA/labels/CASE.png   the same name; 0 is background, 1..K the classes
  or give a folder with dataset.json, imagesTr/ and labelsTr/, folders CASE/images/ and CASE/masks/ (one mask per
  object), .npz files with `images` and `masks`, or DICOM: DATA/CASE/ with a series and its SEG or RTSTRUCT"""
PREDICTION = (
    "give an image, a folder of images or of DICOM series, a data set with images/, or an .npz with `images`; label maps "
    "are not needed"
)
PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"))
_IMAGES = re.compile(r"(images?|imgs?|imagestr|inputs?|originals?|frames?|scans?|volumes?|x)", re.IGNORECASE)
_LABELS = re.compile(
    r"(labels?|labelstr|masks?|segs?|segmentations?|annotations?|gts?|ground[ _-]?truths?|targets?|y)", re.IGNORECASE
)
_IN_NAME = re.compile(r"[_. -](mask|label|seg|segmentation|gt)s?$", re.IGNORECASE)
_SHOWN = 6


def remedy(need_labels: bool) -> str:
    """How data are laid out, for the verb that asks."""
    return TRAINING if need_labels else PREDICTION


def _run_in_place_of_data(root: Path) -> DataError:
    do = f"give the data; to go on with the run: {command(['train', 'DATA', '--out', root, '--resume'])}"
    return data_error(root, "is a run folder, where a data set is wanted", do)


def half_of_a_pair(found: Found, names: set[str]) -> DataError | None:
    """The error where one of two folders is there."""
    pair = next((pair for pair in PAIRS if len(names & set(pair)) == 1), None)
    if pair is None:
        return None
    there, missing = pair if pair[0] in names else pair[::-1]
    others = sorted(name for name in names - {there} if (found.root / name).is_dir())
    beside_it = f" (but {', '.join(name + '/' for name in others[:_SHOWN])})" if others else ""
    what = f"holds {there}/ and no {missing}/ beside it{beside_it}"
    do = f"rename the folder of the {'label maps' if missing == pair[1] else 'images'} to {missing}/"
    return DataError([*found.problems, Problem(str(found.root), what, do)], found.root)


def unknown_layout(found: Found, names: Iterable[str], need_labels: bool) -> DataError:
    """The error that lists what a folder holds, and how far it is from the nearest layout."""
    root, names = found.root, sorted(names)
    if is_run(root):
        return _run_in_place_of_data(root)
    folders = [name for name in names if (root / name).is_dir()]
    files = [name for name in names if (root / name).is_file()]
    suffixes: dict[str, int] = {}
    for name in files:
        suffixes[suffix_of(name) or name] = suffixes.get(suffix_of(name) or name, 0) + 1
    inside = [f"{name}/" for name in folders[:_SHOWN]] + ["..."] * (len(folders) > _SHOWN)
    inside += [
        f"{count} {suffix} file{'s' if count > 1 else ''}" for suffix, count in sorted(suffixes.items())[:_SHOWN]
    ]
    what = f"has a layout that is not known; it holds {', '.join(inside) or 'nothing'}"
    near = _nearest(root, folders, files, need_labels)
    do = f"{near}; else {remedy(need_labels)}" if near else remedy(need_labels)
    return DataError([*found.problems, Problem(str(root), what, do)], root)


def _nearest(root: Path, folders: list[str], files: list[str], need_labels: bool) -> str:
    """What would make it a layout that is known; empty where nothing is near."""
    for name in folders:
        if told := _inside(root / name, need_labels):
            return f"nearest is {told}: give the folder {name}/ itself"
    images = next((name for name in folders if _IMAGES.fullmatch(name)), None)
    labels = next((name for name in folders if _LABELS.fullmatch(name)), None)
    if images is not None and not need_labels:
        return f"give the folder {images}/ itself"
    if images is not None and labels is not None:
        return f"nearest are pairs: rename {images}/ to images/ and {labels}/ to labels/"
    stems = {case_name(name) for name in files if suffix_of(name) in IMAGE_SUFFIXES}
    if any(_IN_NAME.sub("", stem) in stems - {stem} for stem in stems):
        return "nearest are pairs, in one folder: move the images to images/, the label maps to labels/, under the same names"
    parent = root.resolve().parent
    if need_labels and _IMAGES.fullmatch(root.name) and any((parent / name).is_dir() for _, name in PAIRS):
        return f"nearest is the data set that these images belong to: give the folder {parent} itself"
    if need_labels and stems:
        return "nearest are images without label maps, which can be predicted: move them to images/, and add labels/"
    return ""


def _inside(folder: Path, need_labels: bool) -> str:
    """The layout of a folder one level down, by the names in it; empty where it is none."""
    names = {path.name for path in folder.iterdir() if not beside(path.name)}
    for images, labels in PAIRS:
        if images in names and (labels in names or not need_labels):
            return f"a data set ({images}/{f', {labels}/' if labels in names else ''})"
    if {"Original", "Ground Truth"} <= names:
        return "CVC-ClinicDB (Original/, Ground Truth/)"
    if any(suffix_of(name) == ARRAY_SUFFIX for name in names):
        return "arrays (.npz)"
    if any((folder / name / "images").is_dir() and (folder / name / "masks").is_dir() for name in sorted(names)[:3]):
        return "one folder per case (images/, masks/)"
    return ""
