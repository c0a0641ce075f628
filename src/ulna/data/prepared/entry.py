"""One prepared case as a file: a checksum over all of it, what it is, and its tensors as they lie in memory.

A file is whole or absent, and is never changed: it gets its name when its last byte is on the disk, and is read only where
every bit is as it was written. Its tensors are maps of the file, so that they cost memory only while there is some.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ulna.system.files import TEMPORARY, sync_folder

MAGIC = b"ulnacase"
SUFFIX = ".case"
_DIGEST = 32  # bytes
_HEAD = len(MAGIC) + _DIGEST + 8
_ALIGNED = 64
_AT_ONCE = 1 << 24  # bytes of a read or a write
_MOST_FACTS = 1 << 20
_TYPES = {
    str(one).removeprefix("torch."): one
    for one in (torch.float32, torch.uint8, torch.uint16, torch.uint32, torch.int16, torch.int32, torch.int64)
}
MOST_READS = 10  # of an entry that others replace meanwhile, as whoever prepares the same case at the same time does


class Damaged(ValueError):
    """A file that is not what was written."""


class Entry(NamedTuple):
    """What a file holds.

    Args:
        tensors: of the case; views of the file that others may read too, and that nobody changes.
        facts: plain values.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Draft(NamedTuple):
    """An entry that is about to be written: its head, and its tensors with the place of each in the file."""

    head: bytes
    parts: tuple[tuple[int, Tensor], ...]
    size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Draft:
        """Of tensors on the CPU, of types that entries have.

        Raises:
            KeyError: for another type.
        """
        listed: dict[str, Any] = {}
        end, parts = 0, []
        for name, tensor in tensors.items():
            kind = str(tensor.dtype).removeprefix("torch.")
            if kind not in _TYPES:
                raise KeyError(kind)
            listed[name] = [kind, list(tensor.shape), end]
            parts.append((end, tensor.contiguous()))
            end = _aligned(end + tensor.nbytes)
        core = json.dumps({"facts": facts, "tensors": listed, "bytes": end}).encode()
        begin = _aligned(_HEAD + len(core))
        tail = len(core).to_bytes(8, "little") + core + bytes(begin - _HEAD - len(core))
        whole = hashlib.blake2b(tail, digest_size=_DIGEST)
        for at, (start, tensor) in enumerate(parts):
            whole.update(_bytes_of(tensor))
            following = parts[at + 1][0] if at + 1 < len(parts) else end
            whole.update(bytes(following - start - tensor.nbytes))
        return cls(
            MAGIC + whole.digest() + tail, tuple((begin + start, tensor) for start, tensor in parts), begin + end
        )


def write_entry(path: Path, draft: Draft, has_room: Callable[[], bool]) -> bool:
    """Write a file, whole or not at all; False where there is no room.

    Args:
        path: of the entry.
        has_room: asked once the file has its length, under a temporary name.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{path.name}")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o600)
        try:
            os.ftruncate(descriptor, draft.size)
            if not has_room():
                return False
            _write(descriptor, memoryview(draft.head), 0)
            for place, tensor in draft.parts:
                _write(descriptor, memoryview(_bytes_of(tensor)), place)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            temporary.replace(path)
        except PermissionError:
            if not path.exists():  # Windows: another process has written the same and reads it
                raise
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def read_entry(path: Path) -> Entry:
    """Map a file into memory, once all of it is known to be as it was written.

    Raises:
        FileNotFoundError: if there is none.
        Damaged: if it is cut short, changed, another user's or no entry.
        OSError: if it cannot be read.
    """
    for _ in range(MOST_READS):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(descriptor)
            _check_owner(found)
            core, begin = _checked(descriptor, found.st_size)
        finally:
            os.close(descriptor)
        try:  # torch maps a file privately: whoever writes into a tensor by mistake changes no file
            whole = torch.from_file(str(path), shared=False, size=found.st_size, dtype=torch.uint8)
            same = os.path.samestat(path.stat(), found)
        except RuntimeError as error:
            raise Damaged(str(error)) from None
        if same:
            break
    else:
        raise Damaged("was replaced each time that it was read")
    tensors: dict[str, Tensor] = {}
    for name, (kind, shape, start) in core["tensors"].items():
        size = _TYPES[kind].itemsize * math.prod(shape)
        tensors[name] = whole[begin + start : begin + start + size].view(_TYPES[kind]).reshape(shape)
    return Entry(tensors, core["facts"])


def read_facts(path: Path) -> dict[str, Any]:
    """The plain values of a file; what its tensors hold is not looked at.

    Raises:
        OSError, Damaged: as `read_entry`.
    """
    with path.open("rb") as file:
        return dict(_core(file.read(_HEAD), file.read(_MOST_FACTS))["facts"])


def _checked(descriptor: int, size: int) -> tuple[dict[str, Any], int]:
    """What a file says that it holds, and where its tensors begin."""
    head = os.read(descriptor, _HEAD)
    whole = hashlib.blake2b(head[len(MAGIC) + _DIGEST :], digest_size=_DIGEST)
    first, done = b"", len(head)
    while block := os.read(descriptor, _AT_ONCE):
        whole.update(block)
        done += len(block)
        first = first if len(first) >= _MOST_FACTS else first + block[:_MOST_FACTS]
    if done != size or whole.digest() != head[len(MAGIC) : len(MAGIC) + _DIGEST]:
        raise Damaged("its checksum does not fit")
    core = _core(head, first)
    begin = _aligned(_HEAD + int.from_bytes(head[-8:], "little"))
    if begin + core["bytes"] != size:
        raise Damaged("has another length than it says")
    return core, begin


def _core(head: bytes, following: bytes) -> dict[str, Any]:
    length = int.from_bytes(head[-8:], "little") if len(head) == _HEAD else _MOST_FACTS + 1
    if not head.startswith(MAGIC) or length > min(_MOST_FACTS, len(following)):
        raise Damaged("is no entry")
    try:
        core: dict[str, Any] = json.loads(following[:length])
        return core
    except (ValueError, RecursionError):
        raise Damaged("is no entry") from None


def _check_owner(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Damaged("is no file")
    if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise Damaged("can be written by others")


def _write(descriptor: int, values: memoryview, place: int) -> None:
    os.lseek(descriptor, place, os.SEEK_SET)
    done = 0
    while done < len(values):
        done += os.write(descriptor, values[done : done + _AT_ONCE])


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
