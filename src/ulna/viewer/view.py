"""The verb `view`: an image, and a mask over it, in the browser."""

from __future__ import annotations

import json
import logging
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulna.data.volume import Volume
from ulna.errors import UsageError, printable
from ulna.viewer.hand import Laid, lay_mask, read_at_hand
from ulna.viewer.local import Answer, LocalServer
from ulna.viewer.page import Served
from ulna.viewer.shown import OVERLAY, SHOWN, write_shown

log = logging.getLogger(__name__)

CASE = "/case.json"
PREFIX = "ulna-view-"


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
    with _showing(Path(image), None if mask is None else Path(mask), port) as server:
        log.info("showing %s at %s ; Ctrl-C ends it", printable(Path(image).name), server.address)
        if not no_browser and not webbrowser.open(server.address):
            log.info("note: no browser could be opened; open the address yourself")
        server.serve_forever()


@contextmanager
def _showing(image: Path, mask: Path | None, port: int) -> Iterator[LocalServer]:
    """A server that is ready to answer; its files go with it."""
    for path in (image, mask):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: does not exist; check the path")
    volume = read_at_hand(image)
    laid = None if mask is None else lay_mask(mask, volume)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        answers = _answers(Path(folder), image, volume, mask, laid)
        server = LocalServer(answers, port)
        try:
            yield server
        finally:
            server.server_close()


def _answers(folder: Path, image: Path, volume: Volume, mask: Path | None, laid: Laid | None) -> dict[str, Answer]:
    """What is answered beside the page."""
    names = () if laid is None else laid.labels.foreground
    shown = write_shown(
        folder, volume, None if laid is None else laid.mask, len(names), None if laid is None else laid.objects
    )
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
    body = json.dumps(case).encode()
    answers: dict[str, Answer] = {CASE: lambda: Served(body, {"Content-Type": "application/json"})}
    for what in (SHOWN, OVERLAY):
        if shown[what] is not None:
            answers[f"/view/{what}"] = _file(folder / shown[what])
    if case["file"] is not None and mask is not None:
        answers["/mask"] = _file(mask)
    return answers


def _file(path: Path) -> Answer:
    kind = "image/png" if path.suffix == ".png" else "application/octet-stream"
    return lambda: Served(path.read_bytes(), {"Content-Type": kind})
