"""Whole-or-absent files: what is on disk under a name is complete, whatever happened while it was written.

Tensors are stored as one safetensors file whose header carries plain values as JSON and a checksum; never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ulna.errors import UsageError, printable
from ulna.reading import parse_json

TEMPORARY = ".tmp-"
_FORMULA = ("=", "+", "-", "@", "'")  # a quote too, so that what is read is what was written


class Tensors(NamedTuple):
    """Named tensors, and everything else as plain values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place: the old file or the new one, never half.

    Raises:
        UsageError: if the folder cannot be written to or the disk is full; the old file stays as it was.
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
        raise _unwritable(path, error) from error
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
        raise _unwritable(target, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left below `folder`; for one that nobody else writes to."""
    for leftover in folder.rglob(f"{TEMPORARY}*"):
        with suppress(OSError):  # a leftover does no harm
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Text, whole or absent."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    state = json.dumps(content.state)
    # one entry: several come out in an order that changes from process to process
    data = save(tensors, {"ulna": json.dumps({"state": state, "checksum": _checksum(tensors, state)})})
    write_whole(path, lambda temporary: temporary.write_bytes(data))


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


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file; none of them is read.

    Raises:
        UsageError: if it is missing, damaged, or of another kind.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
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
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{printable(path)}: cannot be written ({error.strerror or error}); free space or choose another folder"
    )


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
