"""`python -m ulna.serving.worker`: the one process that decodes images and computes. It takes a job a line, and answers so.

It may die at any moment, of memory or of a file that a library does not survive: the server replaces it.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.data.formats.limits import is_memory_error
from ulna.errors import UsageError
from ulna.serving.answering import answer_upload
from ulna.serving.engine import Engine, runtime
from ulna.system.names import is_of_the_zoo

NICE = 5  # the server answers while images are computed


def main() -> None:
    """Load what predicts, say what it is, and do jobs until the server ends."""
    os.umask(0o077)
    with suppress(OSError, AttributeError):
        os.nice(NICE)
    tell = _teller()
    setup = json.loads(sys.stdin.readline())
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    try:
        engine = load_engine(setup["run"], setup["threads"])
    except UsageError as error:
        tell({"refused": str(error)})
        return
    tell({"ready": engine.about})
    places = places_of(setup["run"])
    while True:
        job = jobs.get()

        def note(stage: str, progress: float | None = None, job: dict[str, Any] = job) -> None:
            tell({"job": job["id"], "stage": stage, "progress": progress})

        try:
            answer_upload(engine, Path(job["folder"]), job["upload"], job["format"], setup, note)
            tell({"job": job["id"], "done": True})
        except UsageError as error:
            tell({"job": job["id"], "failed": without_place(str(error), job["folder"], places)})
        except Exception as error:
            text = "the image needs more memory than is free; cut it, or use a machine with more"
            if not is_memory_error(error):
                sys.stderr.write(traceback.format_exc())
                text = "a defect of ulna serve, whose log has more; please report it"
            tell({"job": job["id"], "failed": text})


def load_engine(run: str, threads: int | None) -> Engine:
    """What a word names: a run folder, an exported file, or zoo:NAME.

    Raises:
        UsageError: if it cannot be read.
    """
    if is_of_the_zoo(run) or Path(run).is_file():
        from ulna.serving.exported import ExportedEngine

        return ExportedEngine(run, threads)
    try:
        from ulna.serving.trained import TrainedEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            f"{run}: a run folder is predicted with torch, which is not installed; export it, and serve the file"
        ) from None
    return TrainedEngine(run, threads)


def _teller() -> Any:
    """What writes a line to the server; whatever else writes to standard output writes to the log from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(what: dict[str, Any]) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    return tell


def _listen(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take jobs as they come; a server that is gone needs no worker."""
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)


def places_of(run: str) -> tuple[str, ...]:
    """All that a sentence may call a model by, the longest first: as it was named, as a path, resolved."""
    path = Path(runtime("zoo").located(run)) if is_of_the_zoo(run) else Path(run)
    return tuple(sorted({run, str(path), str(path.absolute()), str(path.resolve())}, key=len, reverse=True))


def without_place(text: str, folder: str, places: Sequence[str]) -> str:
    """A sentence without the folders of this machine.

    Args:
        text: for a client.
        folder: of the job.
        places: of the model; a relative one may be a word as well, and is a place before a colon or a slash.
    """
    text = text.replace(f"{folder}/", "").replace(folder, "the upload")
    return re.sub("|".join(map(_pattern, places)), "the model", text)


def _pattern(place: str) -> str:
    pattern = re.escape(place)
    return pattern if Path(place).is_absolute() else rf"(?<![\w./-]){pattern}(?=[:/])"


if __name__ == "__main__":
    main()
