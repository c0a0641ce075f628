"""What the process of a job does around its work: it says how far it is, ends with its parent, and is the only one."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ulna.errors import Interrupted, UsageError
from ulna.kernels.allocator import give_back_memory, tune_memory
from ulna.system.cores import PARENT
from ulna.system.locking import locked
from ulna.system.passed_on import without_places
from ulna.system.progress import Lines, report_to
from ulna.system.progress_file import ProgressFile

# The one that says that a process of this job was cut off, and others run beside it again: see `Job.goes_on`.
BESIDE = "ULNA_BESIDE"
# How often a process looks whether its parent is still there.
LOOK_S = 0.5


def python_module(module: str, *words: object) -> list[str]:
    """The argv of a module of ulna's as a process; `-P` keeps files of the working folder from being imported.

    Example:
        >>> python_module("ulna.study.worker", "data", 3)[1:]
        ['-P', '-m', 'ulna.study.worker', 'data', '3']
    """
    return [sys.executable, "-P", "-m", module, *map(str, words)]


def standing_file(folder: Path) -> Path:
    """Where the job of a folder leaves how far it has come: beside the folder."""
    return folder.with_name(folder.name + ".now")


def work(
    data: Path, folder: Path, act: Callable[[], object], done: Callable[[], bool], *, bounded: bool = False
) -> int:
    """Do the work of a job as long as its parent lives; returns the exit code that `ulna` would give.

    Args:
        data: what it reads; in what it logs, the places of data and folder are left out.
        folder: what it writes; locked meanwhile, after another process of this job has ended.
        act: the work.
        done: whether another one has done it meanwhile.
        bounded: memory is given back as soon as it is free, for work that keeps to a limit.
    """
    (give_back_memory if bounded else tune_memory)()  # as the command line does: this process is its own
    report_to(ProgressFile(standing_file(folder)))
    handler = logging.StreamHandler()
    handler.setFormatter(_Stored(data, folder))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    follow_parent()
    try:
        with locked(folder, wait=True):
            if not done():
                act()
    except Interrupted as error:
        return 128 + error.signal
    except UsageError as error:
        # what lies in the folder above is passed on with it
        print(f"error: {without_places(data, folder)(str(error))}", file=sys.stderr)  # noqa: T201 - what is read when this job fails
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"error: a defect of ulna: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def follow_parent() -> None:
    """End this process by SIGTERM when the one that began it is gone, where PARENT names that."""
    parent = os.environ.get(PARENT, "")
    if parent.isdecimal():
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()


def _follow(parent: int) -> None:
    runs = _watched(parent) if os.name == "nt" else lambda: os.getppid() == parent
    while runs():
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _watched(process: int) -> Callable[[], bool]:
    """Whether a process of Windows still runs, which tells a child nothing of the end of its parent."""
    import ctypes

    system = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    may_wait, still_running = 0x0010_0000, 0x102
    system.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(system.OpenProcess(may_wait, False, process))
    return lambda: handle.value is not None and system.WaitForSingleObject(handle, 0) == still_running


class _Stored(Lines):
    """Log lines for a folder that is passed on: without the places of the data and the run."""

    def __init__(self, data: Path, folder: Path) -> None:
        super().__init__()
        self.shown = without_places(data, folder)

    def format(self, record: logging.LogRecord) -> str:
        """As `Lines`."""
        return self.shown(super().format(record))
