"""Images that are a folder of files, as OME-Zarr is: to a person one thing, with one digest, put in place as one."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ulna.errors import UsageError, printable
from ulna.system.files import TEMPORARY, sync_folder, unwritable

TREE_SUFFIX = ".zarr"
LABEL_MAPS = "labels"  # of OME-Zarr: label maps in the folder of their image, which are no part of it
_LEFT = (".DS_Store", "._")  # how names begin that macOS leaves in folders it shows
_HERE, _EXCHANGE = -100, 2  # of Linux' renameat2: paths as they are, and each takes the name of the other


def is_tree(path: Path) -> bool:
    """Whether a folder is one image."""
    return path.suffix.lower() == TREE_SUFFIX and path.is_dir()


def is_own_tree(path: Path) -> bool:
    """The same of a real folder (no link, whatever it leads to) into which nobody has put label maps."""
    return is_tree(path) and not path.is_symlink() and not (path / LABEL_MAPS).exists()


def tree_files(folder: Path) -> list[Path]:
    """The files of an image that is a folder, by their names; those of label maps in it are not among them."""
    names = [LABEL_MAPS] if (folder / LABEL_MAPS).is_dir() else []
    return sorted(_files(folder, set(), names), key=Path.as_posix)


def _files(folder: Path, seen: set[tuple[int, int]], but: list[str]) -> Iterator[Path]:
    found = folder.stat()
    if (found.st_dev, found.st_ino) in seen:  # links that lead back
        return
    seen.add((found.st_dev, found.st_ino))
    for path in folder.iterdir():
        if path.name in but or path.name.startswith(_LEFT):
            continue
        if path.is_dir():
            yield from _files(path, seen, [])
        else:
            yield path


def all_files(folder: Path) -> list[Path]:
    """`tree_files`, with those of label maps: whatever has a name there, a link to nothing too."""
    return sorted(_files(folder, set(), []), key=Path.as_posix)


def copy_tree(folder: Path, target: Path) -> None:
    """The bytes of `all_files` alone: what nobody may write to can be written to in the copy.

    Raises:
        OSError: if one cannot be copied.
    """
    for file in all_files(folder):
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def stamp(path: Path) -> tuple[int, int]:
    """When a file, or the newest of a tree, was changed, and how many bytes it takes: what changes when it is changed.

    Raises:
        OSError: if it cannot be seen.
    """
    found = [file.stat() for file in (tree_files(path) if is_tree(path) else [path])]
    return max((one.st_mtime_ns for one in found), default=0), sum(one.st_size + 1 for one in found) - 1


def is_label_map(path: Path) -> bool:
    """Whether a folder is an OME-Zarr label map (0.5) and holds nothing else."""
    try:
        told = json.loads((path / "zarr.json").read_text("utf-8"))["attributes"]["ome"]
        held = {one.name for one in path.iterdir() if not one.name.startswith(_LEFT)}
        levels = {one["path"] for one in told["multiscales"][0]["datasets"]}
        return is_own_tree(path) and "image-label" in told and held == {"zarr.json", *levels}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def write_tree(path: Path, write: Callable[[Path], object]) -> None:
    """`write_whole` of a folder, which takes the place of a label map alone: the old one or the new one, never half.

    Where names cannot be exchanged (`put_in_place`), a process that is killed in between leaves the old one aside.

    Raises:
        UsageError: if something else is there.
        Unwritable: if it cannot be written.
    """
    if os.path.lexists(path) and not is_label_map(path):
        what = "is there, and more or other than the OME-Zarr label map that a mask may replace"
        raise UsageError(f"{printable(path)}: {what}; remove it, or choose another name")
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        for file in tree_files(temporary):
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())
        put_in_place(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(source: Path, target: Path) -> None:
    """Give a file or a tree another name, in place of what has that name.

    A tree exchanges names with the one that it replaces. Where the system or the file system cannot do that (NFS, macOS,
    Windows), the old one goes aside first: of a process that is killed in between, neither has the name.

    Raises:
        OSError: if it cannot be moved; the old one is there then.
    """
    if not is_own_tree(target):
        source.replace(target)
        return
    if _exchange(source, target):
        shutil.rmtree(source, ignore_errors=True)
        return
    aside = source.with_name(f"{source.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    target.replace(aside)
    try:
        source.replace(target)
    except OSError:
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Give each of two the name of the other, at once; False, with nothing done, where that cannot be."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an older C library
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
