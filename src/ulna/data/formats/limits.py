"""What a file may promise: no more than its bytes can hold, and no more than this machine can.

Everything is compared with what the header declares, before a pixel is decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from ulna.data.formats.source import AGAIN, data_error, shown
from ulna.errors import DataError, Problem, UsageError
from ulna.system.held import held_bytes

LARGEST_RATIO = 1100  # deflate cannot pack more than 1032 bytes into one
MOST_PIXELS = 1_000_000_000  # of a picture; volumes are bounded by the memory
_UNKNOWN = 1 << 36  # where the system does not say how much memory it has
_GB = 1e9
_SPARE = 1.02  # what the program takes differs by some MB from call to call
_OUT = ("out of memory", "not enough memory", "allocate memory")  # what torch says
_REMEDY = "cut it into smaller images, or use a machine with more memory"
_BY_SLABS = "convert the image to tiled TIFF or OME-Zarr (ulna convert), which are read by slabs"
_held: ContextVar[float] = ContextVar("held", default=0.0)  # bytes of the case under way, in a thread
_allowed: dict[str, Any] = {
    "pixels": None,
    "ram": None,
    "beside": None,
    "remedy": None,
    "mapped": None,
    "scratch": None,
    "kept": 0.0,
}


class TooLargeError(DataError):
    """What would take more memory than `--max-ram` allows; others may be small enough."""


@contextmanager
def allowing(
    max_pixels: int | None,
    max_ram: float | None,
    beside: float | None = None,
    remedy: str | None = None,
    mapped_from: float | None = None,
    scratch: Path | None = None,
) -> Iterator[None]:
    """Bound what is read inside, in all threads.

    Args:
        max_pixels: pixels or voxels of an image, channels included.
        max_ram: GB that may be taken; an image may unpack to half of it.
        beside: GB of these that are taken by other things, where that is known.
        remedy: for an image that is too large, beside more memory; left out, a format that is read by slabs.
        mapped_from: bytes from which on an image that is only looked through is mapped from a disk, not read.
        scratch: the folder for what is mapped; left out, the system's own for such files, which may lie in memory.

    Raises:
        UsageError: if a bound is not above 0.
    """
    for name, value in (("--max-pixels", max_pixels), ("--max-ram", max_ram)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{name} {value}: must be above 0")
    before = dict(_allowed)
    _allowed.update(pixels=max_pixels, ram=max_ram, beside=beside, remedy=remedy, mapped=mapped_from)
    _allowed.update(scratch=scratch, kept=0.0)
    try:
        yield
    finally:
        _allowed.update(before)


def mapped_from() -> float:
    """Bytes from which on an image that is only looked through is mapped from a disk; infinite where none is."""
    found = _allowed["mapped"]
    return math.inf if found is None else found


def scratch_folder() -> Path | None:
    """The folder for what is mapped; None for the system's own."""
    found: Path | None = _allowed["scratch"]
    return found


@contextmanager
def keeping_to(max_pixels: int | None, max_ram: float | None, working: float, remedy: str) -> Iterator[None]:
    """Bound this process to so many GB inside, all that it holds already included; without, as `allowing`.

    Args:
        max_pixels: as for `allowing`.
        max_ram: GB.
        working: bytes that are taken on the way, whatever the images.
        remedy: for an image that is too large, beside more memory.

    Raises:
        UsageError: if a bound is not above 0, or the process takes more without any image.
    """
    taken = None
    if max_ram is not None and 0 < max_ram < math.inf:
        taken = (held_bytes() + working) / _GB
        if taken >= max_ram:
            need = math.ceil(100 * taken) / 100
            raise UsageError(
                f"without any image it takes {need:.2f} GB, more than --max-ram {max_ram:g} allows; raise it"
            )
    with allowing(max_pixels, max_ram, taken, remedy):
        yield


def check_promise(where: object, what: str, promised: int, held: int, *, packed: bool, whole: bool = True) -> None:
    """Refuse, before memory is taken, a header that its bytes cannot fulfil, and what no half of the memory holds.

    Args:
        what: the fault in words, such as "the header promises ...".
        promised: bytes that the header declares.
        held: bytes that the file holds.
        packed: the bytes are compressed with deflate.
        whole: all of it will be in memory at once.
    """
    if promised > held * (LARGEST_RATIO if packed else 1):
        raise data_error(where, what, AGAIN)
    if whole:
        check_memory(where, promised)


def check_memory(where: object, promised: int, what: str = "unpacks to", remedy: str = _BY_SLABS) -> None:
    """Refuse what half of the memory does not hold: its label map, and what is made of both, must fit beside it.

    Args:
        where: the image.
        promised: bytes that are in memory at once.
        what: they are, as the message begins.
        remedy: beside more memory for `--max-ram`.
    """
    ram, beside = _allowed["ram"], _beside()
    if ram is not None and promised > (ram - beside) * _GB / 2:
        if beside:
            need = f"{what} {promised / _GB:.2g} GB and needs"
            raise TooLargeError(
                [_beyond(where, need, 2 * promised, ram, f"raise it, or {_allowed['remedy'] or remedy}")]
            )
        size = f"{what} {promised / _GB:.2g} GB, more than half of the {ram:g} GB that --max-ram allows"
        raise data_error(where, size, "raise --max-ram, or cut it into smaller images")
    if promised > memory() // 2:
        size = f"{what} {promised / _GB:.1f} GB, and this machine has {memory() / _GB:.1f} GB of memory"
        raise data_error(where, size, _REMEDY)


def check_need(where: object, need: float, what: str, remedy: str = "raise it") -> None:
    """Refuse what does not fit beside what is held, where `--max-ram` bounds all of a process.

    Args:
        where: the case.
        need: bytes.
        what: takes them, as the message begins.
        remedy: as it ends.

    Raises:
        TooLargeError: with what is needed at least, by all that is known so far.
    """
    ram = _allowed["ram"]
    if ram is not None and bounded() and need > (ram - _beside()) * _GB:
        raise TooLargeError([_beyond(where, f"{what} needs", need, ram, remedy)])


def bounded() -> bool:
    """Whether `--max-ram` bounds all of this process, and not single images alone."""
    return _allowed["ram"] is not None and _allowed["beside"] is not None


@contextmanager
def holding(held: float) -> Iterator[None]:
    """Count so many bytes as taken inside, in this thread."""
    before = _held.set(_held.get() + held)
    try:
        yield
    finally:
        _held.reset(before)


def keep(held: float) -> None:
    """Count so many bytes as taken by what is kept from case to case, in all threads, and no longer what was before."""
    _allowed["kept"] = held


def room() -> float:
    """Bytes that are left of what `--max-ram` allows."""
    return math.inf if _allowed["ram"] is None else (_allowed["ram"] - _beside()) * _GB


def _beside() -> float:
    """GB that are taken by other things than what is to be read."""
    return (_allowed["beside"] or 0.0) + (_held.get() + _allowed["kept"]) / _GB


def _beyond(where: object, what: str, need: float, ram: float, remedy: str) -> Problem:
    least = math.ceil(100 * _SPARE * (need / _GB + _beside())) / 100
    return Problem(shown(where), f"{what} {least:.2f} GB at least, more than --max-ram {ram:g} allows", remedy)


def check_pixels(where: object, shape: Sequence[int], most: int | None = None) -> None:
    """Refuse an image of too many pixels or voxels: more than `--max-pixels`, else more than `most`."""
    allowed = _allowed["pixels"]
    limit = most if allowed is None else int(allowed)
    count = math.prod(shape)
    if limit is None or count <= limit:
        return
    declared = " x ".join(map(str, shape))
    said = f"more than {limit}" if allowed is None else f"more than --max-pixels {limit} allows"
    remedy = "cut it into tiles" if allowed is None else "raise --max-pixels, or cut it into smaller images"
    raise data_error(where, f"declares {declared} pixels, {said}", remedy)


def is_memory_error(error: BaseException) -> bool:
    """Whether memory ran out: Python's own error, and what torch raises in its place."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(one in said for one in _OUT))


def memory_error(where: object) -> DataError:
    """The error for a case that the memory does not hold."""
    return data_error(where, "needs more memory than is free", _REMEDY)


@contextmanager
def within_memory(where: object) -> Iterator[None]:
    """Tell memory that runs out inside as a fault of one case.

    Raises:
        DataError: naming the case.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise memory_error(where) from None


@cache
def memory() -> int:
    """Bytes of memory that this process may use."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = _UNKNOWN
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        limit = physical
    return min(physical, limit)
