"""The chunks of a Zarr array on the disk, looked at before a codec unpacks them: none may unpack to more than it declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulna.data.formats.source import AGAIN, data_error
from ulna.data.formats.unpacking import PACKINGS, SPARE, exceeds

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_SUMS = ("crc32c", "numcodecs.crc32c", "numcodecs.crc32", "numcodecs.adler32", "numcodecs.fletcher32")
_EMPTY = 2**64 - 1  # of an index: no such chunk


class Guard:
    """What is looked at of every chunk that is read, once the array is known.

    Args:
        path: of the image.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look: Callable[[bytes], None] | None = None
        self._inner: Callable[[bytes], None] | None = None  # of chunks of a shard
        self._index: tuple[int, ...] = ()  # where the index of a shard begins, unless at its end
        self._promised = 0

    def watch(self, array: Any) -> None:
        """From now on, look at the chunks of an array of the zarr library.

        Raises:
            DataError: if they are packed twice, which no one can bound.
        """
        metadata, size = array.metadata, np.dtype(array.dtype).itemsize
        if metadata.zarr_format == 2:
            filters = [*(metadata.filters or ()), *([metadata.compressor] if metadata.compressor is not None else [])]
            packings, inner = [str(one.codec_id) for one in filters], None
        else:
            codecs = [one.to_dict() for one in metadata.codecs]
            inner = next((one["configuration"] for one in codecs if one["name"] == "sharding_indexed"), None)
            packings = [str(one["name"]) for one in codecs]
        if inner is None:
            self._promised = math.prod(array.chunks) * size
            self._look = self._packed(packings, self._promised)
            return
        shard = array.shards or array.chunks
        chunk, names = inner["chunk_shape"], [str(one["name"]) for one in inner["codecs"]]
        count = math.prod(a // b for a, b in zip(shard, chunk, strict=True))
        self._promised = math.prod(shard) * size + 16 * count
        look = self._packed(names, math.prod(chunk) * size)
        index = [str(one["name"]) for one in inner.get("index_codecs", ())]
        if packings != ["sharding_indexed"] or not {*index} <= {"bytes", "crc32c"}:
            raise self._odd()
        length = 16 * count + (4 if "crc32c" in index else 0)
        at_end = inner.get("index_location", "end") == "end"

        def each(shard: bytes) -> None:
            if look is None or len(shard) < length:
                return
            places = np.frombuffer(shard[-length:] if at_end else shard[:length], "<u8", 2 * count).reshape(-1, 2)
            for begin, size in places.tolist():
                if begin != _EMPTY:
                    look(shard[begin : begin + size])

        self._look, self._inner, self._index = each, look, () if at_end else (0,)

    def check_size(self, key: str, file: Path) -> None:
        """Refuse a file of a chunk that is larger than all that it may hold."""
        told = self._promised and not key.endswith(_METADATA) and file.is_file()
        if told and file.stat().st_size > 2 * self._promised + SPARE:
            raise self._grown()

    def check(self, key: str, data: bytes, first: int | None) -> None:
        """Refuse a chunk that unpacks to more than it declares; `first`: its first byte in a shard, None of a whole file."""
        look = self._look if first is None else self._inner
        if look is not None and not key.endswith(_METADATA) and first not in self._index:
            look(data)

    def _packed(self, names: Sequence[str], promised: int) -> Callable[[bytes], None] | None:
        """What looks at the bytes of one chunk; None where nothing packs them."""
        plain = [name.removeprefix("numcodecs.") for name in names if name not in _SUMS]
        packings = [name for name in plain if name in PACKINGS]
        if len(packings) > 1:
            raise self._odd()
        if not packings:
            return None
        sums = sum(name in _SUMS for name in names)

        def look(data: bytes) -> None:
            if exceeds(packings[0], data[: len(data) - 4 * sums] if sums else data, promised):
                raise self._grown()

        return look

    def _grown(self) -> Exception:
        return data_error(self._path, "is damaged: a chunk unpacks to more than its metadata declare", AGAIN)

    def _odd(self) -> Exception:
        return data_error(
            self._path, "has chunks that are packed twice, which are not read", "write them with one codec"
        )


def guarded_store(path: Path, guard: Guard) -> Any:
    """A store of the zarr library, for reading, whose chunks a guard looks at."""
    from zarr.abc.store import RangeByteRequest
    from zarr.storage import LocalStore

    class Guarded(LocalStore):
        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            guard.check_size(key, self.root / key)
            return looked_at(key, await super().get(key, prototype, byte_range), byte_range)

        def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
            guard.check_size(key, self.root / key)
            found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
            return looked_at(key, found, byte_range)

    def looked_at(key: str, found: Any, byte_range: Any) -> Any:
        if found is not None and (byte_range is None or isinstance(byte_range, RangeByteRequest)):
            guard.check(key, found.to_bytes(), None if byte_range is None else byte_range.start)
        return found

    return Guarded(path, read_only=True)
