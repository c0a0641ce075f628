"""The verb `view`: an image, and a mask over it, in the browser."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ulna.errors import UsageError, printable
from ulna.system.signals import leaving
from ulna.viewer.hand import lay_mask, read_at_hand
from ulna.viewer.local import Answer, LocalServer
from ulna.viewer.page import Served
from ulna.viewer.shown import OVERLAY, SHOWN, write_shown

log = logging.getLogger(__name__)

CASE = "/case.json"
PREFIX = "ulna-view-"
ENDS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # SIGHUP: a closed terminal
_FORWARD = """<!doctype html><meta charset="utf-8"><title>ulna view</title>
<meta http-equiv="refresh" content="0; url={0}"><a href="{0}">{0}</a>
"""


def view(image: Path | str, mask: Path | str | None = None, /, *, port: int = 0, no_browser: bool = False) -> None:
    """Look at an image, and at a mask over it, in the browser; nothing leaves this machine.

    Volumes are shown in three planes and in 3D. Listens on this machine alone, below an address that nobody guesses, until
    Ctrl-C. The mask may be any that ulna reads; it must have the voxels of the image, in whichever order its file has them.
    Its classes are named where it lies beside the predict.json of `ulna predict`, and in a SEG or RTSTRUCT; else they
    are numbers. docs/viewing.md has the keys.

    Args:
        image: a file, or the folder of a DICOM series.
        mask: a file of labels; left out, the image alone.
        port: to listen to; 0 for any that is free.
        no_browser: print the address, and open nothing.

    Raises:
        UsageError: if a file cannot be read, or the mask does not lie on the image.

    Example:
        ulna view scan.nii.gz masks/scan.nii.gz
    """
    with leaving(*ENDS), _showing(Path(image), None if mask is None else Path(mask), port) as server:
        log.info("showing %s at %s ; Ctrl-C ends it", printable(Path(image).name), server.address)
        with nullcontext() if no_browser else _opened(server.address):
            server.serve_forever()


@contextmanager
def _opened(address: str) -> Iterator[None]:
    """The address in the browser, by a page that forwards to it: all users can read what a program is started with."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        page = Path(folder).resolve() / "open.html"
        with os.fdopen(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_FORWARD.format(address))
        threading.Thread(
            target=_open, args=(page.as_uri(),), daemon=True
        ).start()  # browsers of a terminal do not return
        yield


def _open(address: str) -> None:
    if not webbrowser.open(address):
        log.info("note: no browser could be opened; open the address yourself")


@contextmanager
def _showing(image: Path, mask: Path | None, port: int) -> Iterator[LocalServer]:
    """A server that is ready to answer, and holds what it answers."""
    for path in (image, mask):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: does not exist; check the path")
    with LocalServer(_answers(image, mask), port) as server:
        yield server


def _answers(image: Path, mask: Path | None) -> dict[str, Answer]:
    """What is answered beside the page: what browsers show alone stays in memory, compressed, and nothing on disk."""
    volume = read_at_hand(image)
    laid = None if mask is None else lay_mask(mask, volume)
    names = () if laid is None else laid.labels.foreground
    answers: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        shown = write_shown(
            Path(folder),
            volume,
            None if laid is None else laid.mask,
            len(names),
            None if laid is None else laid.objects,
        )
        for what in (SHOWN, OVERLAY):
            if shown[what] is not None:
                answers[f"/view/{what}"] = _held(_read(Path(folder) / shown[what]))
    case: dict[str, Any] = {
        "name": printable(image.name),
        "size": list(volume.size),
        "spacing": [float(f"{step:.4g}") for step in volume.spacing],
        "unit": volume.unit,
        "file": mask.name if mask is not None and mask.is_file() else None,
        "classes": list(names),
        "notes": list(dict.fromkeys((*volume.meta.notes, *(() if laid is None else laid.notes)))),
        "trust": {} if laid is None else laid.trust,
        "view": shown,
    }
    answers[CASE] = _held(Served(json.dumps(case).encode(), {"Content-Type": "application/json"}))
    if case["file"] is not None and mask is not None:
        answers["/mask"] = _file(mask)
    return answers


def _held(served: Served) -> Answer:
    return lambda: served


def _file(path: Path) -> Answer:
    return lambda: _read(path)


def _read(path: Path) -> Served:
    kind = "image/png" if path.suffix == ".png" else "application/octet-stream"
    return Served(path.read_bytes(), {"Content-Type": kind})
