"""Whole-or-absent files: what is on disk under a name is complete, whatever happened while it was written.

Tensors are stored as one safetensors file whose header carries plain values as JSON and a checksum; never a pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ulna.errors import UsageError, printable
from ulna.system.reading import parse_json

if TYPE_CHECKING:
    from torch import (
        Tensor,  # imported where tensors are read or written alone: a server of exported files has no torch
    )

TEMPORARY = ".tmp-"
_FORMULA = ("=", "+", "-", "@", "'")  # a quote too, so that what is read is what was written
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
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
        with temporary.open("r+b") as file:  # Windows syncs only what can be written
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
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
        sync_folder(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


@contextmanager
def staged(folder: Path, name: str) -> Iterator[Path]:
    """A folder inside `folder` for files that are not yet in place; what killed processes left goes. For its one writer.

    Args:
        folder: exists, and is locked.
        name: of the work, which tells these files from others that are not yet in place.

    Raises:
        Unwritable: if it cannot be made.
    """
    for left in folder.glob(f"{TEMPORARY}{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = folder / f"{TEMPORARY}{name}-{os.getpid()}"
    try:
        staging.mkdir()
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left below `folder`; for one that nobody else writes to."""
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        with suppress(OSError):  # a leftover does no harm
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Text, whole or absent."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), len(text.encode()))


def cell(value: object) -> object:
    """A value for a table that a spreadsheet may open: text that it would take for a formula gets a quote before it.

    Numbers stay numbers; `from_cell` takes the quote away.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def from_cell(text: str) -> str:
    """What `cell` was made of."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA) else text


def write_tensors(path: Path, content: Tensors) -> None:
    """One safetensors file, whole or absent, with a checksum inside."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    state = json.dumps(content.state)
    # one entry: several come out in an order that changes from process to process
    data = save(tensors, {"ulna": json.dumps({"state": state, "checksum": _checksum(tensors, state)})})
    write_whole(path, lambda temporary: temporary.write_bytes(data), len(data))


def read_tensors(path: Path, largest: int | None = None) -> Tensors:
    """Read a file of `write_tensors` and check it.

    Args:
        path: the file.
        largest: refuse a file of more bytes before it is read.

    Raises:
        UsageError: if it is missing, damaged, too large, or of another kind.
    """
    with _opened(path) as file:
        size = path.stat().st_size
        if largest is not None and size > largest:
            raise UsageError(
                f"{printable(path)}: has {size:,} bytes, its training needs at most {largest:,}; restore it"
            )
        meta = parse_json((file.metadata() or {}).get("ulna", "{}"), str(path))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        stored = meta if isinstance(meta, dict) else {}
        state, checksum = stored.get("state"), stored.get("checksum")
        whole = isinstance(state, str) and checksum == _checksum(tensors, state)
    if not isinstance(state, str) or not whole:
        raise UsageError(f"{printable(path)}: its checksum does not fit its content; restore it or train again")
    values = parse_json(state, str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{printable(path)}: its state holds {type(values).__name__} and no fields; restore it")
    return Tensors(tensors, values)


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of any safetensors file; its checksum is held to where it is one of `write_tensors`.

    Raises:
        UsageError: if it is missing or damaged.
    """
    with _opened(path) as file:
        own = "ulna" in (file.metadata() or {})
        if not own:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return dict(read_tensors(path).tensors)


def read_state(path: Path) -> dict[str, Any]:
    """The plain values of a file of `write_tensors`, unchecked; no tensor is read.

    Raises:
        UsageError: if it is missing, damaged, or of another kind.
    """
    with _opened(path) as file:
        meta = parse_json((file.metadata() or {}).get("ulna", "{}"), str(path))
    state = meta.get("state") if isinstance(meta, dict) else None
    values = parse_json(state, str(path)) if isinstance(state, str) else None
    if not isinstance(values, dict):
        raise UsageError(f"{printable(path)}: holds no state; restore it")
    return values


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file; none of them is read.

    Raises:
        UsageError: if it is missing, damaged, or of another kind.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    name = printable(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise UsageError(f"{name}: is not a file; restore it or train again")
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file") from None
    except UsageError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        # the last five: of types of numbers that this version of torch does not have
        what = f"damaged or not a safetensors file ({printable(error)})"
        raise UsageError(f"{name}: {what}; restore it or train again") from None


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    import torch

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
    if error.errno in FULL:
        with suppress(OSError):
            what += f": {_amount(shutil.disk_usage(_nearest(path)).free)} are free"
            if size:
                what += f", {'more than ' if size < 0 else ''}{_amount(abs(size))} are needed"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "check its permissions or choose another folder"
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "give it a shorter name, or choose another folder"
    made = Unwritable(f"{printable(path)}: cannot be written ({what}); {remedy}")
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


def sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is; not every system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
