"""The bytes of a file, or of an image that is a folder, as they are, under the ending that they ask for."""

from __future__ import annotations

import shutil
from pathlib import Path

from ulna.data.formats.source import Source, file_stat, is_zarr, readable, suffix_of
from ulna.data.quality.fixes import Change, own_suffix
from ulna.system.trees import copy_tree, tree_files


def true_suffix(source: Source, changes: list[tuple[Path, Change]], stem: Path) -> str:
    """The file's extension, or the one that its first bytes ask for."""
    suffix = suffix_of(source.path)
    if is_zarr(source.path):
        return suffix
    file_stat(source.path)
    if source.row is not None:
        return suffix
    asked = own_suffix(source.path)
    kin = {".jpeg": ".jpg", ".tiff": ".tif", ".ome.tif": ".tif", ".ome.tiff": ".tif"}
    if asked is None or kin.get(suffix, suffix) == asked:
        return suffix
    changes.append((stem.with_name(stem.name + asked), Change(f"was named {suffix}, though it is {asked}")))
    return asked


def copy(source: Path, target: Path) -> None:
    """The bytes alone: a copy of a file that nobody may write to can be written to."""
    with readable(source):
        for file in tree_files(source) if is_zarr(source) else (source,):
            file.open("rb").close()
    (copy_tree if is_zarr(source) else shutil.copyfile)(source, target)


def remove(copied: Path) -> None:
    """What was copied: it is written anew."""
    shutil.rmtree(copied) if copied.is_dir() else copied.unlink(missing_ok=True)
