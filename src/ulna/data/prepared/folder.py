"""Where prepared cases are kept, how much of them, and which of them go first."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ulna.data.prepared.entry import SUFFIX
from ulna.errors import UsageError, brief
from ulna.kernels.cache import danger
from ulna.system.files import TEMPORARY

PLACE, LIMIT = "ULNA_CACHE_DIR", "ULNA_CACHE_GB"
SHARE, MOST = 0.5, 100e9  # of the disk, and bytes, where nobody says a limit
ABANDONED_S = 600.0  # a file that is being written changes all the time; what has not for so long was left by a kill
_GB = 1e9


class Kept(NamedTuple):
    """An entry: its file, its length, and when it was last used, in seconds since 1970."""

    path: Path
    size: int
    used: float


class Unusable(OSError):
    """No folder that this user alone writes."""


def where() -> Path:
    """The folder that should be: `ULNA_CACHE_DIR`, or `ulna/cases` in that of `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        Unusable: if there is no home.
    """
    if named := os.environ.get(PLACE):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:  # the specification has relative paths ignored: they would name another folder wherever a command is run
        root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise Unusable(str(error)) from None
    return root / "ulna" / "cases"


def opened(*, make: bool) -> Path | None:
    """The folder, if it may be trusted: nobody but this user (and root) can write in it or exchange it.

    What is read there is data and never run; in the folder of another user it could still be other data.

    Args:
        make: it where there is none; else None stands for that.

    Raises:
        Unusable: with the reason.
    """
    folder = where()
    try:
        if make:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        elif not folder.exists():
            return None
        if folder.is_symlink():
            raise Unusable(f"{folder} is a link")
        folder = Path(os.path.realpath(folder))
        # without owners of files, as on Windows, what lies below a home is its user's
        if hasattr(os, "geteuid") and (why := danger(folder)):
            raise Unusable(why)
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(f"{folder}: {error.strerror or error}") from None
    return folder


def wanted_limit() -> int | None:
    """Bytes that entries may take, as `ULNA_CACHE_GB` says; None where it is not set.

    Raises:
        UsageError: if the variable is no number of GB.
    """
    said = os.environ.get(LIMIT)
    if not said:
        return None
    try:
        allowed = float(said)
    except ValueError:
        allowed = math.nan
    if not 0 <= allowed < math.inf:
        raise UsageError(f"{LIMIT}={brief(said)}: is no number of GB; give 0 or more, such as {LIMIT}=50")
    return int(allowed * _GB)


def limit(folder: Path, held: int) -> int:
    """Bytes that entries may take: `wanted_limit`, or half of the disk that is free without them, 100 GB at most.

    Args:
        folder: exists.
        held: bytes of the entries that are there.
    """
    wanted = wanted_limit()
    return int(min(MOST, SHARE * (shutil.disk_usage(folder).free + held))) if wanted is None else wanted


def entries(folder: Path) -> list[Kept]:
    """All that are there, those first which were not used for longest."""
    return sorted((one for one in _files(folder) if _is_whole(one)), key=lambda one: (one.used, one.path))


def make_room(folder: Path, pinned: Container[str]) -> bool:
    """Remove entries until all together, and those that are being written, keep to the limit; False where they cannot.

    A process that reads one goes on reading it: a file without a name lasts as long as it is open. Windows refuses to remove
    what is being read, so there it stays.

    Args:
        folder: of the entries.
        pinned: names of files that stay.
    """
    files = [one for one in _files(folder) if not _is_abandoned(one)]
    held = sum(one.size for one in files)
    over = held - limit(folder, held)
    going: list[Kept] = []
    for one in sorted(files, key=lambda one: (one.used, one.path)):
        if over <= 0:
            break
        if _is_whole(one) and one.path.name not in pinned:
            going.append(one)
            over -= one.size
    if over > 0:  # then nothing goes in vain
        return False
    gone = [removed(one.path) for one in going]
    return all(gone)


def removed(path: Path) -> bool:
    """Whether an entry is gone now."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes were writing."""
    for one in _files(folder):
        if _is_abandoned(one):
            removed(one.path)


def touch(path: Path) -> None:
    """Note that an entry is used now; where that cannot be noted, it goes sooner."""
    with suppress(OSError):
        os.utime(path)


def _is_whole(one: Kept) -> bool:
    return not one.path.name.startswith(TEMPORARY)


def _is_abandoned(one: Kept) -> bool:
    return not _is_whole(one) and time.time() - one.used > ABANDONED_S


def _files(folder: Path) -> Iterator[Kept]:
    """Entries, whole or being written; nothing else that may lie there."""
    with os.scandir(folder) as found:
        for one in found:
            if one.name.endswith(SUFFIX):
                with suppress(FileNotFoundError):  # another process has removed it
                    about = one.stat(follow_symlinks=False)
                    yield Kept(Path(one.path), about.st_size, about.st_mtime)
