"""Data sets with a dataset.json: the Decathlon's lists its cases, nnU-Net's leaves them to the files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ulna.data.formats.source import Source, beside, case_name, composed, suffix_of
from ulna.data.layout.case import Case
from ulna.data.layout.metadata import parse_channels
from ulna.data.layout.pairing import Found, files_in, grouped, image_sources, pairs
from ulna.errors import counted


def note_number(found: Found, about: Mapping[str, Any], where: str) -> None:
    """Tell where `numTraining` is another number than that of the cases found so far."""
    promised = about.get("numTraining")
    if promised is not None and str(promised) != str(len(found.cases)):
        found.notes.append(f"dataset.json says numTraining {promised}, {where} {counted(len(found.cases), 'case')}")


def nnunet(found: Found, about: Mapping[str, Any], need_labels: bool, channels: int | None, declared: bool) -> set[str]:
    """nnU-Net v2: the files themselves are the list."""
    found.layout = "nnunet"
    if not declared:
        found.notes.append("there is no dataset.json: the classes are named by their values")
    names = parse_channels(about.get("channel_names", about.get("modality")))
    pairs(found, "imagesTr", "labelsTr", need_labels, channels or (len(names) if names else None))
    path, ending = found.root / "dataset.json", about.get("file_ending")
    counts = {len(case.images) for case in found.cases}
    if names and counts - {1, len(names)}:
        what = f"names {counted(len(names), 'channel')}, imagesTr holds {counted(max(counts), 'file')} per case"
        found.wrong(path, what, "name every channel")
    note_number(found, about, "imagesTr holds")
    if isinstance(ending, str) and found.cases and not any(c.images[0].path.name.endswith(ending) for c in found.cases):
        found.wrong(path, f"says that files end in {ending!r}, none does", "correct file_ending")
    tests = found.root / "imagesTs"
    if tests.is_dir():
        extra = grouped(found, files_in(found, tests), (), channels or (len(names) if names else None))
        found.cases += [Case(case, image_sources(found, paths), None) for case, paths in extra.items()]
        found.notes.append(f"imagesTs holds {counted(len(extra), 'case')} without label maps")
    return {"imagesTr", "labelsTr", "imagesTs"}


def listed(found: Found, about: Mapping[str, Any], need_labels: bool) -> set[str]:
    """Cases that dataset.json lists: the Decathlon's `training` and `test`, or nnU-Net's `dataset`."""
    found.layout = "decathlon"
    path = found.root / "dataset.json"
    entries = about.get("training", about.get("dataset"))
    remedy = 'write "training": [{"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}, ...]'
    if isinstance(entries, Mapping):
        entries = [{"id": key, **entry} if isinstance(entry, Mapping) else entry for key, entry in entries.items()]
    if not isinstance(entries, list):
        found.wrong(path, "has no list of training cases", remedy)
        return {"imagesTr", "labelsTr", "imagesTs"}
    for entry in entries:
        if not isinstance(entry, Mapping) or not (entry.get("image") or entry.get("images")):
            found.wrong(path, f"has an entry that names no image: {str(entry)[:80]}", remedy)
            continue
        images = _image_paths(found, path, entry.get("image") or entry.get("images"))
        label = _inside(found, path, entry["label"]) if entry.get("label") else None
        if label is None and need_labels and not entry.get("label"):
            found.wrong(path, f"has an entry without label: {str(entry)[:80]}", remedy)
        if images:
            named = entry.get("image") or entry.get("images")
            name = composed(str(entry.get("id") or (case_name(label) if label else _id(named, images))))
            found.cases.append(Case(name, image_sources(found, images), Source(label) if label else None))
    note_number(found, about, "lists")
    _listed_tests(found, about, path)
    folder = found.root / "imagesTr"
    listed = {source.path.name for case in found.cases for source in case.images}
    spare = [p.name for p in sorted(folder.iterdir()) if p.is_file() and not beside(p.name)] if folder.is_dir() else []
    spare = [name for name in spare if name not in listed]
    if spare:
        found.notes.append(
            f"imagesTr holds {counted(len(spare), 'file')} that dataset.json does not list, for example {spare[0]}"
        )
    return {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "images", "labels"}


def _listed_tests(found: Found, about: Mapping[str, Any], path: Path) -> None:
    tests = about.get("test") or []
    if not isinstance(tests, list):
        found.wrong(path, "`test` is no list", 'write "test": ["./imagesTs/CASE.nii.gz", ...]')
        return
    if tests and not (found.root / "imagesTs").is_dir():
        found.notes.append(f"dataset.json lists {counted(len(tests), 'test image')}, imagesTs/ is not there")
        return
    for entry in tests:
        named = entry.get("image") if isinstance(entry, Mapping) else entry
        images = _image_paths(found, path, named)
        if images:
            found.cases.append(Case(_id(named, images), image_sources(found, images), None))


def _id(named: Any, images: list[Path]) -> str:
    """The case of an entry: its name, also where that stands for `_0000` files, or what its channels have in common."""
    if isinstance(named, str):
        return case_name(named.replace("\\", "/"))
    stems = {re.sub(r"_\d{4}$", "", case_name(image)) for image in images}
    return stems.pop() if len(images) > 1 and len(stems) == 1 else case_name(images[0])


def _image_paths(found: Found, path: Path, value: Any) -> list[Path]:
    """The files of one entry: a name, a list of names (channels), or a name that stands for its `_0000` files."""
    if isinstance(value, list):
        paths = [_inside(found, path, one) for one in value]
        return [one for one in paths if one is not None] if None not in paths else []
    relative = _relative(value)
    if relative is not None and not (found.root / relative).exists():
        target = found.root / relative
        suffix, folder = suffix_of(target), target.parent
        stem = target.name[: len(target.name) - len(suffix)]  # as the file is spelled, not as the case
        if (folder / f"{stem}_0000{suffix}").exists():
            pattern = re.compile(re.escape(stem) + r"_\d{4}" + re.escape(suffix))
            return sorted(file for file in folder.iterdir() if pattern.fullmatch(file.name))
    one = _inside(found, path, value)
    return [one] if one else []


def _relative(value: Any) -> str | None:
    """A name that lies in the data set's folder, tidied; None for anything else."""
    if not isinstance(value, str) or "\0" in value:
        return None
    relative = os.path.normpath(value.replace("\\", "/"))
    return None if Path(relative).is_absolute() or relative.split("/")[0] == ".." else relative


def _inside(found: Found, path: Path, value: Any) -> Path | None:
    """A file that dataset.json names, which must exist and lie in the data set's folder."""
    if not isinstance(value, str) or "\0" in value:
        found.wrong(path, f"has {value!r} in place of a file name", "write names relative to the folder")
        return None
    relative = _relative(value)
    if relative is None:
        found.wrong(path, f"names {value}, which lies outside the folder", "write names relative to the folder")
        return None
    target = found.root / relative
    if not os.path.lexists(target):
        found.wrong(path, f"names {value}, which does not exist", "add the file, or take the entry out")
        return None
    return target
