"""Whole-or-absent files: what is on disk under a name is complete, whatever happened while it was written.

Tensors are stored as one safetensors file whose header carries plain values as JSON and a checksum; never a pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ulna.errors import UsageError

TEMPORARY = ".tmp-"
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EFBIG, errno.EINVAL, getattr(errno, "EILSEQ", errno.EINVAL))


class Unwritable(UsageError):
    """A file cannot be written; `everything` is False where another name or size would do."""

    everything = True


class Tensors(NamedTuple):
    """Named tensors, and everything else as plain values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_whole(path: Path, write: Callable[[Path], object], size: int | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place: the old file or the new one, never half.

    Args:
        path: the file.
        write: called with the temporary file's path.
        size: bytes that it takes, where known: a message about a full disk names them.

    Raises:
        Unwritable: if the folder cannot be written to or the disk is full; the old file stays as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")  # the ending stays: writers go by it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # what did not fit is longer than what was written of it
            size = size or -temporary.stat().st_size
        raise unwritable(path, error, size) from error
    finally:
        with suppress(OSError):  # where the folder itself is missing, the error above says so
            temporary.unlink(missing_ok=True)


def move_whole(source: Path, target: Path) -> None:
    """Give a whole file another name in its folder, in place of what has that name.

    Raises:
        UsageError: if it cannot be moved.
    """
    try:
        source.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left below `folder`; for one that nobody else writes to."""
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        with suppress(OSError):  # a leftover does no harm
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Text, whole or absent."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), len(text.encode()))


def write_tensors(path: Path, content: Tensors) -> None:
    """One safetensors file, whole or absent, with a checksum inside."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    state = json.dumps(content.state)
    # one entry: several come out in an order that changes from process to process
    data = save(tensors, {"ulna": json.dumps({"state": state, "checksum": _checksum(tensors, state)})})
    write_whole(path, lambda temporary: temporary.write_bytes(data), len(data))


def read_tensors(path: Path) -> Tensors:
    """Read a file of `write_tensors` and check it.

    Raises:
        UsageError: if it is missing, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("ulna", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path}: damaged or not a safetensors file ({error}); restore it or train again") from None
    if "state" not in meta or meta.get("checksum") != _checksum(tensors, meta["state"]):
        raise UsageError(f"{path}: its checksum does not fit its content; restore it or train again")
    return Tensors(tensors, json.loads(meta["state"]))


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def unwritable(path: Path, error: OSError, size: int | None = None) -> Unwritable:
    """The error for a file or folder that cannot be written: for a full disk with the bytes that are free and needed.

    Args:
        path: what was to be written.
        error: what the system says.
        size: bytes needed; below 0, they are known to be more than as many.
    """
    what, remedy = error.strerror or str(error), "free space or choose another folder"
    if error.errno in _FULL:
        with suppress(OSError):
            what += f": {_amount(shutil.disk_usage(_nearest(path)).free)} are free"
            if size:
                what += f", {'more than ' if size < 0 else ''}{_amount(abs(size))} are needed"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "check its permissions or choose another folder"
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "give it a shorter name, or choose another folder"
    made = Unwritable(f"{path}: cannot be written ({what}); {remedy}")
    made.everything = error.errno not in _OF_ONE_FILE
    return made


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next((place for place in (path, *path.parents) if place.exists()), Path())


def _amount(count: int) -> str:
    """Bytes in a unit that people read.

    Example:
        >>> _amount(999), _amount(12_345_678)
        ('999 bytes', '12.3 MB')
    """
    if count < 1000:
        return f"{count} bytes"
    exponent = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**exponent:.1f} {'kMGT'[exponent - 1]}B"


def _sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is; not every system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
