"""What lies in a folder: pairs of images and labels, dataset.json, or npz files.

    DATA/images/CASE.png + DATA/labels/CASE.png           pairs; images/CASE_0000.png, CASE_0001.png are channels
    DATA/dataset.json, imagesTr/, labelsTr/               Decathlon and nnU-Net
    DATA/CASE/images/*, DATA/CASE/masks/*                 one folder per case, one mask per object
    DATA/train.npz, val.npz, test.npz                     arrays
    DATA/CASE/...                                         DICOM series with SEG or RTSTRUCT files, at any depth
    as published: CVC-ClinicDB, LiTS, KiTS19              `published.py`

A layout is found from names alone; no pixel is read. Everything that does not fit is collected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.choosing import Wishes
from ulna.data.formats.dicom.finding import holds_dicom, known_header
from ulna.data.formats.dicom.header import is_dicom
from ulna.data.formats.npz import npz_contents
from ulna.data.formats.source import (
    ARRAY_SUFFIX,
    IMAGE_SUFFIXES,
    Source,
    beside,
    case_name,
    data_error,
    is_zarr,
    readable,
    shown,
    suffix_of,
)
from ulna.data.layout.case import Case
from ulna.data.layout.case_folders import case_folders
from ulna.data.layout.dataset_json import listed, nnunet, note_number
from ulna.data.layout.declared import CLASSES_FILE, parse_classes, read_classes
from ulna.data.layout.dicom_tree import dicom_tree
from ulna.data.layout.metadata import parse_channels, read_json
from ulna.data.layout.pairing import Found, convert, files_in, grouped, image_sources, pairs
from ulna.data.layout.published import patients_in_names, published
from ulna.data.layout.structures import are_structures, name_labels
from ulna.data.layout.unknown import PAIRS, half_of_a_pair, remedy, unknown_layout
from ulna.data.layout.wishes import read_wishes
from ulna.errors import DataError, counted
from ulna.system.exported import refuse_exported
from ulna.system.extras import need

_FEW = 64  # files that tell a DICOM tree
_LABEL_NAME = re.compile(r"(?:^|[_.-])(label|labels|mask|masks|seg|segmentation|gt|groundtruth)(?:[_.-]|$)")


def find(root: Path, *, need_labels: bool, channels: int | None = None, wishes: Wishes | None = None) -> Found:
    """Look through `root`, a folder or one file.

    Args:
        need_labels: every image needs its label map (training), or may lack it (prediction).
        channels: how many files make a case, where only the names of images can tell.
        wishes: what is said about DICOM series, before what `dicom.json` says.

    Raises:
        DataError: if there is nothing to read, or the layout is unknown.
    """
    refuse_exported([root], "data")
    with readable(root):
        if not root.exists():
            raise data_error(root, "does not exist", "check the path")
        found = Found(root)
        found.wishes = (wishes or Wishes()).over(read_wishes(found))
        found = _looked_through(found, need_labels, channels)
        name_labels(found)
        if any(is_zarr(source.path) for case in found.cases for source in (*case.images, case.label) if source):
            need("zarr", f"{shown(root)}: holds OME-Zarr, which needs", "zarr")
        return found


def check_layout(root: Path, *, need_labels: bool) -> None:
    """Refuse what is no data set, as `find` does. What is one by its first names is not looked through, nor is a DICOM tree.

    Raises:
        DataError: if there is nothing to read, or the layout is unknown.
    """
    with readable(root):
        names = {entry.name for entry in root.iterdir()} if root.is_dir() else set()
        paired = any(image in names and (label in names or not need_labels) for image, label in PAIRS)
        if paired or "dataset.json" in names or (names and holds_dicom(root, most=_FEW)):
            return
    find(root, need_labels=need_labels)


def _looked_through(found: Found, need_labels: bool, channels: int | None) -> Found:
    root = found.root
    if root.is_file() or is_zarr(root):
        _one_file(found, need_labels)
        return found
    names = {entry.name for entry in root.iterdir() if not beside(entry.name)}
    about = read_json(root / "dataset.json", found.problems) if "dataset.json" in names else {}
    if about is None:  # broken JSON: the pairs may still be read
        about = {}
    if not isinstance(about, Mapping):
        found.wrong(root / "dataset.json", "is no JSON object", "write it as the Decathlon or nnU-Net does")
        about = {}
    arrays = sorted(root / name for name in names if suffix_of(name) == ARRAY_SUFFIX)
    used: set[str]
    if "training" in about or "dataset" in about:
        used = listed(found, about, need_labels)
    elif "imagesTr" in names and ("labelsTr" in names or not need_labels):
        used = nnunet(found, about, need_labels, channels, declared="dataset.json" in names)
    elif "images" in names and ("labels" in names or not need_labels):
        used = pairs(found, "images", "labels", need_labels, channels)
        note_number(found, about, "images holds")
    elif known := published(found, names, need_labels, channels):
        used = known
    elif arrays:
        used = _arrays(found, arrays, need_labels)
    elif folders := case_folders(found, names, need_labels, channels):
        used = folders
    elif need_labels and not holds_dicom(root) and (half := half_of_a_pair(found, names)):
        raise half
    elif in_tree := (holds_dicom(root) and dicom_tree(found, need_labels)):
        used = in_tree
    elif not need_labels and (imaged := _flat(found, names, channels)):
        used = imaged
    else:
        raise unknown_layout(found, names, need_labels)
    if found.layout != "dicom" or found.labels is None:
        _declared_names(found, about)
    patients_in_names(found)
    _say_name(found)
    spare = sorted(name for name in names - used if (root / name).is_dir())
    found.notes += [f"{name}/ is not read" for name in spare]
    found.cases.sort(key=lambda case: case.id)
    if not found.cases and not found.problems:
        found.wrong(root, "holds no case", remedy(need_labels))
    return found


def _one_file(found: Found, need_labels: bool) -> None:
    path = found.root
    if suffix_of(path) == ARRAY_SUFFIX:
        _arrays(found, [path], need_labels)
        found.labels = read_classes(path.parent, found.problems)
        found.declared_in = None if found.labels is None else CLASSES_FILE
    elif need_labels and path.suffix in (".yaml", ".yml"):
        raise data_error(path, "is a YAML file, not a data set", "a plan goes with --plan, a recipe with --recipe")
    elif need_labels:
        what = "is one image, not a data set" if is_zarr(path) else "is one file, not a data set"
        raise data_error(path, what, remedy(need_labels))
    elif suffix_of(path) not in IMAGE_SUFFIXES and is_dicom(path):
        _one_dicom(found, path)
    elif suffix_of(path) not in IMAGE_SUFFIXES:
        raise data_error(path, f"has the extension {suffix_of(path)!r}, which is not read", convert())
    else:
        found.layout = "image"
        found.cases = [Case(case_name(path), (Source(path),), None)]
        _tell_label_name(found, path)


def _tell_label_name(found: Found, path: Path) -> None:
    """What is called a label map may be one: it is not segmented in silence."""
    if _LABEL_NAME.search(case_name(path).lower()):
        found.notes.append(f"{shown(path)} has the name of a label map; it is read as an image")


def _one_dicom(found: Found, path: Path) -> None:
    kind = known_header(path).kind
    if kind in ("seg", "rtstruct"):
        raise data_error(path, "is a label file (SEG or RTSTRUCT), no image", "give the series that it was drawn on")
    if kind == "directory":
        raise data_error(path, "is an index of DICOM files (DICOMDIR)", "give the folder in which it lies")
    if kind != "image":
        raise data_error(path, "is a DICOM file without an image", "give a series of images")
    found.layout = "image"
    found.cases = [Case(case_name(path), image_sources(found, [path]), None)]


def _declared_names(found: Found, about: Mapping[str, Any]) -> None:
    """Class and channel names: those of classes.json, else of dataset.json, else what the layout is known to hold."""
    structures = are_structures(found)  # classes.json names structures of DICOM labels, which are read with them
    declared = None if structures else read_classes(found.root, found.problems)
    if os.path.lexists(found.root / CLASSES_FILE) and not structures:
        found.labels, found.declared_in = declared, CLASSES_FILE
        if "labels" in about:
            found.notes.append("classes.json names the classes, in place of the labels of dataset.json")
    elif "labels" in about:
        found.labels = parse_classes(about["labels"], about, found.root / "dataset.json", found.problems)
        found.declared_in = "dataset.json"
    found.channel_names = parse_channels(about.get("channel_names", about.get("modality"))) or found.channel_names


def _say_name(found: Found) -> None:
    """Data sets whose folder has the name that their site gives it."""
    name, cases = found.root.resolve().name, counted(len(found.cases), "case")
    if found.layout in ("decathlon", "nnunet") and re.fullmatch(r"Task\d\d_\w+", name):
        found.notes.append(
            f"layout: {name} of the Medical Segmentation Decathlon (dataset.json, imagesTr/, labelsTr/), {cases}"
        )
    elif found.layout == "case folders" and re.fullmatch(r"stage\d_(train|test)\w*", name):
        found.notes.append(f"layout: {name} of the 2018 Data Science Bowl (CASE/images/, CASE/masks/), {cases}")


def _flat(found: Found, names: Iterable[str], channels: int | None) -> set[str]:
    """A folder of images without labels."""
    if not any(suffix_of(name) in IMAGE_SUFFIXES for name in names):
        return set()
    found.layout = "images"
    for case, paths in grouped(found, files_in(found, found.root), (), channels).items():
        found.cases.append(Case(case, image_sources(found, paths), None))
        _tell_label_name(found, paths[0])
    return {"images", *(name for name in names if is_zarr(Path(name)))}


def _arrays(found: Found, files: list[Path], need_labels: bool) -> set[str]:
    """npz files; their names say the split where one is called train and another val or test."""
    found.layout = "npz"
    sets: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for path in files:
        try:
            contents = npz_contents(path)
        except DataError as error:
            found.problems += error.problems
            continue
        if contents.images is None:
            found.wrong(path, "holds no `images`", "save `images` (N, *S[, C]) and `masks` (N, *S)")
            continue
        if contents.masks is None and need_labels:
            found.wrong(path, "holds no `masks`", "save `masks` (N, *S) beside `images`")
        rows = [Source(path, row) for row in range(len(contents.ids))]
        has_masks = contents.masks is not None
        found.cases += [Case(i, (row,), row if has_masks else None) for i, row in zip(contents.ids, rows, strict=True)]
        role = next((name for name in sets if path.name.lower().startswith(name)), None)
        if role:
            sets[role] += contents.ids
        elif len(files) > 1:
            found.notes.append(f"{path.name}: its name says no set (train*, val*, test*)")
    if sets["train"] and (sets["val"] or sets["test"]):
        found.sets = sets
    return {path.name for path in files}
