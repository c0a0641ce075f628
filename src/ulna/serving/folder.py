"""The folder of a server: private, removed at its end; what a server left that was killed is removed by the next one."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ulna.system.locking import system_lock

log = logging.getLogger(__name__)

PREFIX = "ulna-serve-"
LOCK = "lock"  # held as long as the server lives, however it ends


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder below `TMPDIR` that no other user can read; what it holds is removed with it."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    descriptor = os.open(folder / f"{LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if system_lock(descriptor):  # it gets its name when it is held, so that no other server ever finds it free
            (folder / f"{LOCK}.new").rename(folder / LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Remove the folders of this user's servers that live no more; those whose lock tells nothing stay."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except (OSError, AttributeError):  # no such lock, or not on this system
            continue
        try:
            if system_lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)
                log.info("note: removed %s, which a server left that was killed", folder)
        finally:
            os.close(descriptor)
