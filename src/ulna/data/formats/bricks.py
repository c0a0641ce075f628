"""An array that lies on disk in bricks: any box of it is read and written with the memory of that box alone.

Rows along one axis are written, and rows along another are read, at one cost; a file in plain order would be read whole
for every slab across its order, and a memory-mapped one counts as memory of the process.
"""

from __future__ import annotations

import errno
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ulna.data.formats.offsets import read_at, write_at
from ulna.errors import UsageError, printable

EDGE = {1: 1 << 16, 2: 256, 3: 32}  # voxels along every axis of a brick, by the number of axes

_FULL = (errno.ENOSPC, errno.EDQUOT)

Box = tuple[slice, ...]  # with start and stop, steps of 1


def refuse_full(error: OSError, folder: Path | None) -> None:
    """Tell a disk that is full of what is unpacked onto it by its folder; other errors are nobody's here.

    Raises:
        UsageError: saying so.
    """
    if error.errno in _FULL:
        where = tempfile.gettempdir() if folder is None else folder
        remedy = "free some of it" if folder is not None else "free some of it, or name another folder in TMPDIR"
        raise UsageError(f"{printable(where)}: the disk does not hold what is unpacked there; {remedy}") from None


class Bricks:
    """(C, *S) of one type in a nameless file, 0 where nothing was written; it goes with the process, whatever ends that.

    Args:
        shape: (C, *S), *S of up to three axes.
        dtype: of the values.
        folder: where the file lies; by default the system's own for such files.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, folder: Path | None = None) -> None:
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        self._edge = tuple(min(EDGE[len(self.shape) - 1], max(n, 1)) for n in self.shape[1:])
        self._grid = tuple(-(-n // edge) for n, edge in zip(self.shape[1:], self._edge, strict=True))
        self._bytes = math.prod(self._edge) * self.dtype.itemsize
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the array
        self._file.truncate(self.shape[0] * math.prod(self._grid) * self._bytes)

    def read(self, box: Sequence[slice], channels: Sequence[int] | None = None) -> NDArray[Any]:
        """(C, *box), or the channels that are named."""
        channels = range(self.shape[0]) if channels is None else channels
        made = np.empty((len(channels), *(part.stop - part.start for part in box)), self.dtype)
        for place, within, there in self._touched(box):
            for channel, target in zip(channels, made, strict=True):
                target[there] = self._brick(channel, place)[within]
        return made

    def write(self, box: Sequence[slice], values: NDArray[Any]) -> None:
        """Put (C, *box) there."""
        for place, within, there in self._touched(box):
            covered = all(part.stop - part.start == n for part, n in zip(within, self._extent(place), strict=True))
            for channel, source in enumerate(values):
                brick = np.zeros(self._edge, self.dtype) if covered else self._brick(channel, place).copy()
                brick[within] = source[there]
                self._put(brick.tobytes(), self._offset(channel, place))

    def close(self) -> None:
        """Give its place on the disk back."""
        self._file.close()

    def _brick(self, channel: int, place: tuple[int, ...]) -> NDArray[Any]:
        data = read_at(self._file.fileno(), self._bytes, self._offset(channel, place))
        return np.frombuffer(data, self.dtype).reshape(self._edge)

    def _put(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        while len(rest):  # a full disk writes less at first, and raises then
            done = write_at(self._file.fileno(), rest, offset)
            rest, offset = rest[done:], offset + done

    def _offset(self, channel: int, place: tuple[int, ...]) -> int:
        number = channel
        for at, count in zip(place, self._grid, strict=True):
            number = number * count + at
        return number * self._bytes

    def _extent(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """The size of a brick inside the array."""
        corners = zip(place, self._edge, self.shape[1:], strict=True)
        return tuple(min(edge, n - at * edge) for at, edge, n in corners)

    def _touched(self, box: Sequence[slice]) -> Iterator[tuple[tuple[int, ...], Box, Box]]:
        """Every brick that a box touches: its place, what of it, and where in the box that lies."""
        along = []
        for part, edge in zip(box, self._edge, strict=True):
            if part.stop <= part.start:
                return
            pieces = []
            for at in range(part.start // edge, -(-part.stop // edge)):
                first, end = max(part.start, at * edge), min(part.stop, (at + 1) * edge)
                within, there = slice(first - at * edge, end - at * edge), slice(first - part.start, end - part.start)
                pieces.append((at, within, there))
            along.append(pieces)
        for found in itertools.product(*along):
            yield tuple(at for at, _, _ in found), tuple(one for _, one, _ in found), tuple(one for _, _, one in found)
