"""One training of a study in a process: `python -m ulna.study.worker STUDY_PID DATA RECIPE RUN [KEY] [--allow-code]`.

It ends with the study: where the study was killed, it leaves a checkpoint at its next step. Two workers never write one
run folder: the second waits for the lock of the first.
"""

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

from ulna.data.prepared.store import SWITCH as CACHE_SWITCH
from ulna.errors import Interrupted, UsageError
from ulna.kernels.allocator import tune_memory
from ulna.system.locking import locked
from ulna.system.passed_on import without_places
from ulna.system.progress import Lines, report_to
from ulna.system.progress_file import ProgressFile

# The last word of a command whose network is code that a person named.
ALLOW = "--allow-code"
# How often a worker looks whether its study is still there.
LOOK_S = 0.5


def standing_file(run: Path, key: Path | None = None) -> Path:
    """Where a training leaves how far it has come, for the study: beside its run folder."""
    return run.with_name(run.name + ".now")


def main(study: int, data: Path, recipe: Path, run: Path, key: Path | None = None, *, allow_code: bool = False) -> int:
    """Train, or go on; returns the exit code of `ulna train`. `allow_code`: a person named the code of the network."""
    # the other trainings of the study find the cases that this one prepares
    os.environ.setdefault(CACHE_SWITCH, "1")

    def training() -> None:
        from ulna.training.train import train

        if (run / "recipe.yaml").exists():
            train(data, out=run, resume=True, pseudonymise=key, allow_code=allow_code)
        else:
            train(data, out=run, recipe=recipe, pseudonymise=key, allow_code=allow_code)

    return work(study, data, run, training)


def work(study: int, data: Path, run: Path, training: Callable[[], None]) -> int:
    """Do a training for a study as long as that lives; returns the exit code of `ulna train`."""
    tune_memory()  # as the command line does: this process is a study's own
    report_to(ProgressFile(standing_file(run)))
    handler = logging.StreamHandler()
    handler.setFormatter(_Stored(data, run))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    threading.Thread(target=_follow, args=(study,), daemon=True).start()
    try:
        with locked(run, wait=True):
            if (run / "summary.json").exists() and (run / "cases.csv").exists():
                return 0  # the worker before, whose lock this one waited for, has done it
            training()
    except Interrupted as error:
        return 128 + error.signal
    except UsageError as error:
        # what lies in the study's folder is passed on with it
        print(f"error: {without_places(data, run)(str(error))}", file=sys.stderr)  # noqa: T201 - what the study reads when this training fails
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"error: a defect of ulna: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


class _Stored(Lines):
    """Log lines for the study's folder, which is passed on: without the places of the data and the run."""

    def __init__(self, data: Path, run: Path) -> None:
        super().__init__()
        self.shown = without_places(data, run)

    def format(self, record: logging.LogRecord) -> str:
        """As `Lines`."""
        return self.shown(super().format(record))


def _follow(study: int) -> None:
    runs = _watched(study) if os.name == "nt" else lambda: os.getppid() == study
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


if __name__ == "__main__":
    number, *paths = sys.argv[1:]
    allowed = paths[-1:] == [ALLOW]
    sys.exit(main(int(number), *map(Path, paths[: len(paths) - allowed]), allow_code=allowed))
