"""The journals of `predict`: what it has noted of masks before they were put in place, and has not ended since.

One lies in the folder of the masks. Processes that share the cases of one `predict` have one each, in folders of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.errors import UsageError
from ulna.system.locking import locked
from ulna.system.outputs import JOURNAL, PREDICT_FILE, SHARES, file_digest, is_plain
from ulna.system.reading import LARGEST_JSON, parse_json

TASK = "task.json"  # of processes that share the cases: without it none begins
PATIENCE_S, LOOK_S = 20.0, 0.2  # with processes whose command is gone


def journals(folder: Path) -> list[Path]:
    """Those that are in a folder, and not empty: its writer's, then those of the processes that share its cases."""
    found = [folder / JOURNAL, *of_shares(folder)]
    return [path for path in found if is_plain(path) and path.stat().st_size]


def end_shares(folder: Path) -> None:
    """See that no process of a command that is gone writes masks from now on: they end soon after it, and none begins.

    Raises:
        UsageError: if one goes on, or another command writes into the folder; with who it is. Nothing is taken from those
            that go on then.
    """
    if not (folder / SHARES).is_dir():
        return
    with locked(folder):
        _wait_for_shares(folder)
        for task in (folder / SHARES).glob(f"*/{TASK}"):  # such as that of a job which waits in SLURM's queue
            task.unlink(missing_ok=True)
        _wait_for_shares(folder)  # for one that began meanwhile


def _wait_for_shares(folder: Path) -> None:
    """Until no process works on a share.

    Raises:
        UsageError: if one still does after a while; with who it is.
    """
    until = time.monotonic() + PATIENCE_S
    for share in sorted(path for path in (folder / SHARES).glob("*/share_*") if path.is_dir()):
        while True:
            try:
                with locked(share):
                    break
            except UsageError:
                if time.monotonic() > until:
                    raise
            time.sleep(LOOK_S)


def of_shares(folder: Path) -> list[Path]:
    """Those of the processes that share the cases of a folder."""
    return sorted((folder / SHARES).glob(f"*/share_*/{JOURNAL}"))


def noted(path: Path) -> Iterator[list[dict[str, Any]]]:
    """What a journal holds, masks that share their files together; a last line may be cut short, and then nothing was put
    in place for it.

    Raises:
        UsageError: if it is larger than any of ulna's.
    """
    if not is_plain(path):
        return
    if path.stat().st_size > LARGEST_JSON:
        raise not_ours(path)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            values = parse_json(line, str(path))
            if isinstance(values, list):
                yield values


def not_ours(path: Path) -> UsageError:
    """The error for a file that has the name of one of ulna's."""
    return UsageError(f"{path}: is not what ulna predict writes; move it, or choose another folder")


def state_of(folder: Path) -> tuple[str, ...]:
    """Digests of predict.json, the journal, and those of shares; empty text for one that is not there, or empty."""
    paths = (folder / PREDICT_FILE, folder / JOURNAL, *of_shares(folder))
    try:
        return tuple(file_digest(path) if is_plain(path) and path.stat().st_size else "" for path in paths)
    except OSError:  # gone meanwhile, which is a change; or not readable, which is told where it is read
        return ()
