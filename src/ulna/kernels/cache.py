"""Where compiled kernels are kept, and why they may be loaded: what lies there is run in this process.

A library is loaded only from a folder that nobody but this user (and root) can write, through folders of which the same is
true, and only if its content is the one that was built, by the checksum in its name. What is in doubt is built again; where
no folder can be trusted, in one of this process alone. What a wheel brings (`instruction_sets.py`) does not pass here: it
lies beside ulna's Python files, and is trusted as they are.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

try:
    import grp
    import pwd
except ImportError:  # no such owners of files here: `kept` says so
    pass

log = logging.getLogger(__name__)

SCRATCH = "building-"  # temporary folders of compilations
ABANDONED_S = 3600.0  # a compilation is given 5 minutes a step; what is older was killed
SUFFIX = ".so"
# what a user namespace knows: the number of all users outside it, and those inside, with how many there are in all
OVERFLOW, USERS, ALL_USERS = Path("/proc/sys/kernel/overflowuid"), Path("/proc/self/uid_map"), 2**32 - 1


def kept(name: str, build: Callable[[Path], Path]) -> Path:
    """A sound file in a safe folder: one that was made earlier under this name, or what `build` makes now.

    Args:
        name: it changes with all that the content depends on; the checksum of the content is added to it.
        build: makes the content in a folder that is removed afterwards, and says where it lies.

    Raises:
        OSError: where files have no owners.
    """
    if not hasattr(os, "geteuid"):
        raise OSError("this system does not say who owns a file, so none can be trusted to be run")
    folder = _folder() or _private()
    _remove_abandoned(folder)
    for found in sorted(folder.glob(f"{name}-*{SUFFIX}")):
        if _sound(found):
            return found
        found.unlink(missing_ok=True)  # cut off by a full disk or a crash, or not ours
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        made = build(Path(scratch))
        made.chmod(0o700)
        target = folder / f"{name}-{_checksum(made)}{SUFFIX}"
        _sync(made)
        made.replace(target)  # whole or absent, also when two processes build at once
    _sync(folder)
    return target


def _folder() -> Path | None:
    """The user's cache folder; None, and a word in the log, where it is not safe or cannot be made."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the specification has relative paths ignored: they would name another folder wherever a command is run
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    folder = root / "ulna"
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            reason = f"{folder} is a link"
        else:
            # from here on the place itself: links on the way to it may be turned elsewhere after it was looked at
            folder = Path(os.path.realpath(folder))
            reason = danger(folder)
        if not reason and not os.access(folder, os.W_OK | os.X_OK):
            reason = f"{folder} is read-only"
    except OSError as error:
        reason = f"{folder}: {error.strerror or error}"
    if reason:
        _tell(reason)
        return None
    return folder


def danger(folder: Path) -> str:
    """Why a folder must not be trusted: somebody else may write in it, or exchange it; empty if there is no reason."""
    own = os.lstat(folder)
    if not stat.S_ISDIR(own.st_mode):
        return f"{folder} is not a folder"
    if own.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if _shared(own):
        return f"{folder} can be written by others"
    for above in folder.parents:
        found = os.lstat(above)
        if found.st_uid not in (0, os.geteuid()) and not _of_the_system(found):
            return f"{above} belongs to another user"
        # in a folder with the sticky bit, as /tmp, others cannot exchange what is ours
        if _shared(found) and not found.st_mode & stat.S_ISVTX:
            return f"{above} can be written by others"
    return ""


def _of_the_system(found: os.stat_result) -> bool:
    """Whether a folder belongs to one of the users that a container does not know, as those of the system do there.

    In a user namespace all of them have one number. None of them is in the namespace; its group is as little known, so
    that nobody but the owner may write.
    """
    try:
        nobody = int(OVERFLOW.read_text())
        known = sum(int(line.split()[2]) for line in USERS.read_text().splitlines())
    except (OSError, ValueError, IndexError):
        return False
    others = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not found.st_mode & stat.S_ISVTX
    return found.st_uid == nobody and known < ALL_USERS and not others


def _shared(found: os.stat_result) -> bool:
    """Whether others may write: everybody, or a group that has more members than this user."""
    if found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP:
        return False
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(found.st_gid)
    except KeyError:
        return True
    return group.gr_gid != user.pw_gid or group.gr_name != user.pw_name or bool({*group.gr_mem} - {user.pw_name})


def _sound(path: Path) -> bool:
    """Whether a file is this user's own, and its content the one that its name tells of."""
    try:
        found = os.lstat(path)
        ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return ours and stat.S_ISREG(found.st_mode) and path.stem.endswith(f"-{_checksum(path)}")
    except OSError:
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed compilations have left."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        try:
            old = time.time() - os.lstat(scratch).st_mtime > ABANDONED_S
        except OSError:  # another process was faster
            continue
        if old and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)


@cache
def _private() -> Path:
    """A folder of this process, removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="ulna-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _tell(reason: str) -> None:
    log.warning(
        "compiled kernels are not kept, and built anew in every process: %s; make it yours alone (chmod 700), "
        "or set XDG_CACHE_HOME to a folder that is",
        reason,
    )
