"""One writer a folder: a lock that ends with its process, however it ends, and a note that says who holds it.

The lock is the system's own (`flock`, on Windows `msvcrt.locking`) on the file `.lock` in the folder, so that a killed
process leaves none. Where a system has no such locks, the note is all there is, and the process that it names is looked
for: a note of another machine, or of a process whose number has come again, then has to be removed by hand.
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
try:
    import msvcrt
except ImportError:  # on Windows alone
    msvcrt = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LOCK = ".lock"
_LONGEST_NOTE = 1 << 16
_FAR = 1 << 30  # a byte of the lock file, which is not there
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
    # when the process began, as the system counts; empty where it does not say: numbers of processes come again
    started: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}: {self.command}"

    def ended(self, place: Path) -> bool:
        """Whether it is known to run no more: a process of this machine that is not there, or is another one by now."""
        if self.host != socket.gethostname():
            return False
        if os.name == "nt":  # there a signal of 0 is no question but a Ctrl-C
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # there is one, of somebody else
            pass
        now = _started(self.pid)
        if self.started and now:
            return self.started != now
        return self.pid == os.getpid() and place not in _held


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine was; empty where the system does not say."""
    try:  # the name of a program, in brackets, may hold anything
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Be the only one who writes into a folder; it is made, and removed again where nothing was written into it.

    A thread may lock a folder again that it has locked.

    Args:
        folder: to be written into.
        wait: until the other one has ended, in place of an error; where that can be known.

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
                if _same(folder / LOCK, descriptor):
                    (folder / LOCK).unlink()
            _close(descriptor)
            if (
                msvcrt is not None
            ):  # Windows keeps the name of a file that is open; whoever has taken it since keeps it too
                with suppress(OSError):
                    (folder / LOCK).unlink(missing_ok=True)
            for parent in missing:
                with suppress(OSError):  # what was written stays
                    parent.rmdir()


def _wait_for(folder: Path, wait: bool) -> int:
    """The descriptor of the lock file, once this process holds it."""
    told = False
    while True:
        try:
            descriptor, holder, known = _take(folder)
        except OSError as error:
            why = error.strerror or error
            raise UsageError(f"{printable(folder)}: cannot be written ({why}); choose another --out") from None
        if descriptor is not None:
            if holder is not None:
                log.info("note: %s: took over the lock of a process that has ended (%s)", printable(folder), holder)
            return descriptor
        # without locks of the system nobody hears of the end of what runs elsewhere, or has not said where
        endless = not known and told and (holder is None or holder.host != socket.gethostname())
        if not wait or endless:
            raise UsageError(
                f"{printable(folder)}: another command writes into it ({holder or 'it has not said which'}); wait until it "
                f"has ended, or choose another --out{_remedy(folder, holder, known)}"
            )
        if not told:
            log.info("waiting for %s: %s writes into it", printable(folder), holder or "another command")
            told = True
        time.sleep(_LOOK_S)


def _remedy(folder: Path, holder: Holder | None, known: bool) -> str:
    here = holder is None or holder.host == socket.gethostname()
    if known and here:
        return ""
    runs = "it runs no more" if holder is None or here else f"{holder.host} runs it no more"
    return f"; if {runs}, remove {printable(folder / LOCK)}"


def _take(folder: Path) -> tuple[int | None, Holder | None, bool]:
    """Try to take the lock.

    Returns:
        The descriptor of the lock file, or None if another one holds it; who its note names; and whether the system
        itself knows about the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    try:
        descriptor, made, ours = _opened(path)
    except FileNotFoundError:
        if path.is_symlink() or not folder.is_dir():
            raise
        return _take(folder)  # it has been given back since
    try:
        holder = _read(descriptor)
        free = system_lock(descriptor)
        known = free is not None
        if free is None:  # there is the note alone; one that says nothing may be about to be written
            free = made or (holder is not None and holder.ended(folder.resolve()))
        if not free:
            return None, holder, known
        # else the one before has removed it, and another one may have made it anew
        if _same(path, descriptor):
            if ours and (known or made):
                holder = _read(descriptor)
                _write(descriptor)
                taken, descriptor = descriptor, -1
                return taken, holder, known
            _remove(path)  # of those that begin together, one makes it anew
        return _take(folder)
    finally:
        if descriptor >= 0:
            _close(descriptor)


def _opened(path: Path) -> tuple[int, bool, bool]:
    """The descriptor of a lock file, whether it was made now, and whether this user may write it."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    made, ours = True, True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)
    except FileExistsError:
        made = False
        try:
            descriptor = os.open(path, os.O_RDWR | flags)
        except PermissionError as refused:
            ours = False
            try:  # the system locks what can be read
                descriptor = os.open(path, os.O_RDONLY | flags)
            except PermissionError:
                raise _unusable(path, refused) from None
    _open.add(descriptor)
    return descriptor, made, ours


def _remove(path: Path) -> None:
    """Remove a lock file that nobody holds."""
    try:
        path.unlink(missing_ok=True)
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


def system_lock(descriptor: int) -> bool | None:
    """Whether this process now has the system's lock; None where there are no such locks."""
    if fcntl is None:
        return None if msvcrt is None else _byte_lock(descriptor)
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


def _byte_lock(descriptor: int) -> bool:
    """The same on Windows, where a lock is of bytes, which nobody else can read then: of one far behind the note."""
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    return True


def _same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _read(descriptor: int) -> Holder | None:
    """What the note says; None where it says nothing that can be read."""
    with suppress(ValueError, TypeError, KeyError, OverflowError, RecursionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        note = json.loads(os.read(descriptor, _LONGEST_NOTE))
        host, since, command = (printable(note[name])[:LONGEST_SHOWN] for name in ("host", "since", "command"))
        return Holder(int(note["pid"]), host, since, command, str(note.get("started", "")))
    return None


def _write(descriptor: int) -> None:
    note = {
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(note).encode())
