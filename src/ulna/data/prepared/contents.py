"""Digests of files: each is hashed once in a process, and can be asked whether its file still holds what was hashed."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import NamedTuple

from ulna.data.formats.source import beside
from ulna.errors import UsageError, printable
from ulna.system.outputs import file_digest
from ulna.system.trees import is_tree, tree_files

# What was changed within so many seconds before it was hashed may be changed again without another time: clocks of file
# systems go in steps, the longest of them of two seconds.
SETTLED_S = 3.0


class _Hashed(NamedTuple):
    digest: str
    stamps: tuple[tuple[int, ...], ...]  # of every file: which it is, how long, and when it was changed
    settled: bool


class Contents:
    """What files hold, by SHA-256."""

    def __init__(self) -> None:
        self._known: dict[Path, _Hashed] = {}

    def of(self, path: Path) -> str:
        """The digest of a file, or of all in a folder of masks that are one label map.

        Raises:
            UsageError: if it cannot be read.
        """
        if path not in self._known:
            self._known[path] = _hashed(path)
        return self._known[path].digest

    def holds(self, path: Path) -> bool:
        """Whether a file that was hashed holds the same bytes now.

        The same file of the same length and times does, where these were old when it was hashed; else it is hashed again.
        """
        before = self._known[path]
        try:
            if before.settled and _stamps(members(path)) == before.stamps:
                return True
            return _hashed(path).digest == before.digest
        except (OSError, UsageError):
            return False


def members(path: Path) -> list[Path]:
    """The files that a path stands for: itself, or all in a folder of masks, or of OME-Zarr."""
    if is_tree(path):
        return tree_files(path)
    inside = path.is_dir() and sorted(one for one in path.iterdir() if not beside(one.name) and one.is_file())
    return inside or [path]


def _hashed(path: Path) -> _Hashed:
    try:
        files = members(path)
        began, stamps = time.time(), _stamps(files)
        changed = max((max(stamp[-2:]) for stamp in stamps), default=0) / 1e9
        digest = file_digest(path) if is_tree(path) else file_digest(*files)
        return _Hashed(digest, stamps, settled=began - changed > SETTLED_S)
    except OSError as error:
        why = error.strerror or "it is no file"
        raise UsageError(f"{printable(path)}: cannot be read ({why}); check the path") from None


def _stamps(files: list[Path]) -> tuple[tuple[int, ...], ...]:
    found: list[tuple[int, ...]] = []
    for file in files:
        one = file.stat()
        if not stat.S_ISREG(one.st_mode):
            raise OSError(f"{file}: is no file")
        found.append((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns))
    return tuple(found)
