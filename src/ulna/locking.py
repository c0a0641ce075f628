"""One writer a folder: a lock that ends with its process, however it ends, and a note that says who holds it.

The lock is the system's own (`flock`) on the file `.lock` in the folder, so that a killed process leaves none. Where a
system has no such locks, the note is all there is, and the process that it names is looked for.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from ulna.errors import LONGEST_SHOWN, UsageError, printable

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = ".lock"
_LONGEST_NOTE = 1 << 16
_LOOK_S = 0.5
_held: dict[Path, int] = {}  # folder -> the thread of this process that holds it
_open: set[int] = set()  # descriptors of lock files


def _leave_to_parent() -> None:
    """In a forked process: a lock is its parent's alone, and ends with it, however long the child lives."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class Holder(NamedTuple):
    """Who holds a lock, as its note says."""

    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"

    @property
    def ended(self) -> bool:
        """Whether it is known to run no more: a process of this machine that is not there."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # there is one, of somebody else
            return False
        return False


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only one who writes into a folder; it is made, and removed again where nothing was written into it.

    A thread may lock a folder again that it has locked.

    Args:
        folder: to be written into.
        wait: until the other one has ended, in place of an error.

    Raises:
        UsageError: if another process or thread holds it (says who), or the folder cannot be written to.
    """
    place, thread = folder.resolve(), threading.get_ident()
    if _held.get(place) == thread:
        yield
        return
    missing = [parent for parent in (place, *place.parents) if not parent.exists()]
    descriptor = _wait_for(folder, wait)
    _held[place], owner = thread, os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # a child that was forked meanwhile gives nothing back
            del _held[place]
            with suppress(OSError):  # first the name, then the lock: nobody else can hold a file of that name before
                (folder / LOCK).unlink()
            _close(descriptor)
            for parent in missing:
                with suppress(OSError):  # what was written stays
                    parent.rmdir()


def _wait_for(folder: Path, wait: bool) -> int:
    """The descriptor of the lock file, once this process holds it."""
    told = False
    while True:
        try:
            descriptor, holder = _take(folder)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"{printable(folder)}: cannot be written ({why}); choose another --out") from None
        if descriptor is not None:
            if holder is not None:
                log.info("note: %s: took over the lock of a process that has ended (%s)", printable(folder), holder)
            return descriptor
        if not wait:
            raise UsageError(
                f"{printable(folder)}: another command writes into it ({holder or 'it has not said which'}); wait until it "
                f"has ended, or choose another --out{_remedy(folder, holder)}"
            )
        if not told:
            log.info("waiting for %s: %s writes into it", printable(folder), holder or "another command")
            told = True
        time.sleep(_LOOK_S)


def _remedy(folder: Path, holder: Holder | None) -> str:
    if holder is None or holder.host == socket.gethostname():
        return ""
    return f"; if {holder.host} runs it no more, remove {printable(folder / LOCK)}"


def _take(folder: Path) -> tuple[int | None, Holder | None]:
    """The descriptor of the lock file, or None if another one holds it; and who its note names."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor, ours = _opened(path)
    try:
        holder = _read(descriptor)
        free = _system_lock(descriptor)
        if free is None:  # there is the note alone
            free = holder is None or holder.ended
        if not free:
            return None, holder
        # else the one before has removed it, and another one may have made it anew
        if _same(path, descriptor):
            if ours:
                holder = _read(descriptor)
                _write(descriptor)
                taken, descriptor = descriptor, -1
                return taken, holder
            _remove(path)
        return _take(folder)
    finally:
        if descriptor >= 0:
            _close(descriptor)


def _opened(path: Path) -> tuple[int, bool]:
    """The descriptor of a lock file, made where there is none, and whether this user may write it."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor, ours = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644), True
    except PermissionError as refused:
        if not path.exists():
            raise
        try:  # the system locks what can be read
            descriptor, ours = os.open(path, os.O_RDONLY | flags), False
        except PermissionError:
            raise _unusable(path, refused) from None
    _open.add(descriptor)
    return descriptor, ours


def _remove(path: Path) -> None:
    """Remove the lock file of another user who holds it no more."""
    try:
        path.unlink()
    except PermissionError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{printable(path)}: is the lock of another user, and can be neither taken nor removed ({error.strerror}); have it "
        "removed where nothing of theirs runs, or choose another --out"
    )


def _close(descriptor: int) -> None:
    _open.discard(descriptor)
    os.close(descriptor)


def _system_lock(descriptor: int) -> bool | None:
    """Whether this process now has the system's lock; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
            # some network file systems; the last one of those that lock only what can be written
            return None
        raise
    return True


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _read(descriptor: int) -> Holder | None:
    """What the note says; None where it says nothing that can be read."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        note = json.loads(os.read(descriptor, _LONGEST_NOTE))
        words = (printable(note[name])[:LONGEST_SHOWN] for name in ("host", "since", "command"))
        return Holder(int(note["pid"]), *words)
    return None


def _write(descriptor: int) -> None:
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(note).encode())
