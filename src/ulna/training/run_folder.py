"""The folder of a run before anything is trained there: free, writable, or one that goes on."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

from ulna.data.layout.pseudonyms import DATA_FILE
from ulna.errors import UsageError, printable
from ulna.inference.fold_runs import is_cross_validation
from ulna.networks.foreign import CODE_FILE
from ulna.system.outputs import check_free, foreign

# what a training writes as it begins; the last one makes the folder a run
START = ("plan.yaml", "splits.json", DATA_FILE, "recipe.yaml")
LOG_FILE = "log.txt"
BEGUN = (*START[:-1], CODE_FILE, LOG_FILE)  # no more than that is left of a training that was killed while it began


def existing_folder(out: Path | None, data: Path) -> Path:
    """The folder of a run, or of a cross-validation, that goes on.

    Raises:
        UsageError: if there is none, with the command that begins one.
    """
    if out is None:
        raise UsageError("--resume needs --out with the folder of a run")
    if (out / START[-1]).exists() or is_cross_validation(out):
        return out
    start = shlex.join(["ulna", "train", str(data), "--model", "NAME", "--out", str(out)])
    if not out.exists():
        raise UsageError(
            f"{printable(out)}: no such folder, so there is nothing to go on with (a training that is stopped while it reads "
            f"its data leaves none); start with: {start}"
        )
    if out.is_dir() and not foreign(out, BEGUN):
        raise UsageError(f"{printable(out)}: nothing was trained there yet; leave --resume out: {start}")
    raise UsageError(f"{printable(out)}: is not the folder of a run (no {START[-1]}); --resume needs --out with one")


def new_folder(data: Path, model: str, out: Path | None) -> Path:
    """The folder of a new run, which may be written; by default runs/DATA-MODEL, with a number where that is taken.

    Raises:
        UsageError: if it holds something, or cannot be made.
    """
    if out is not None:
        refuse_taken(out)
        return _writable(out)
    short = re.sub(r"[/:\\]+", "_", model)
    name = f"{data.resolve().name.removesuffix('.npz')}-{short}"
    numbers = ("", *(f"-{n}" for n in range(2, 10_000)))
    free = (Path("runs") / (name + number) for number in numbers)
    return _writable(next(folder for folder in free if not folder.exists()))


def refuse_taken(out: Path) -> None:
    """Refuse a folder that holds a run, or files of others.

    Raises:
        UsageError: saying so.
    """
    if (out / START[-1]).exists() or is_cross_validation(out):
        raise UsageError(
            f"{printable(out)}: holds a run already; add --resume to go on with it, or choose another --out"
        )
    check_free(out, BEGUN)


def _writable(folder: Path) -> Path:
    """Refuse a folder that cannot be made before hours of work; leaves nothing behind."""
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    probe = nearest / f".ulna-{time.time_ns()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
    return folder
