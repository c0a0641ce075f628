"""One folder per case, one mask per object: DATA/CASE/images/* and DATA/CASE/masks/* (2018 Data Science Bowl)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ulna.data.formats.source import Source, composed
from ulna.data.layout.case import Case
from ulna.data.layout.pairing import Found, files_in, grouped, image_sources
from ulna.errors import counted


def case_folders(found: Found, names: Iterable[str], need_labels: bool, channels: int | None) -> set[str]:
    """The folders among `names` that hold `images/`; none of them: this is another layout."""
    folders = [found.root / name for name in sorted(names) if (found.root / name / "images").is_dir()]
    if need_labels and not any((folder / "masks").is_dir() for folder in folders):
        return set()
    found.layout = "case folders"
    for folder in folders:
        images = grouped(found, files_in(found, folder / "images"), (), channels)
        if len(images) != 1:
            what = f"holds {counted(len(images), 'image') if images else 'no images'}"
            found.wrong(folder / "images", what, "give every case a folder of its own, with one image")
            continue
        (paths,) = images.values()
        found.cases.append(Case(composed(folder.name), image_sources(found, paths), _masks(found, folder, need_labels)))
    return {folder.name for folder in folders}


def _masks(found: Found, folder: Path, need_labels: bool) -> Source | None:
    """The folder of a case's masks stands for their union."""
    masks = folder / "masks"
    if masks.is_dir() and files_in(found, masks):
        return Source(masks)
    if need_labels:
        found.wrong(folder, "holds no masks/ with a mask in it", "add the masks, or take the case out")
    return None
