"""The chunks of a Zarr array on the disk, looked at before a codec unpacks them: none may unpack to more than it declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ulna.data.formats.source import AGAIN, data_error
from ulna.data.formats.unpacking import SPARE, exceeds

_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_PACKINGS = ("zlib", "gzip", "lzma", "bz2", "zstd", "blosc", "lz4")  # and not packbits, which is no PackBits here
_SUMS = {"crc32c": "end", "crc32": "start", "adler32": "start", "fletcher32": "end", "jenkins_lookup3": "end"}
_SUM = 4  # bytes of a checksum
_TYPES = ("dtype", "astype", "encode_dtype", "decode_dtype")  # of values, which a filter may widen
_SHARDS = "sharding_indexed"
_EMPTY = 2**64 - 1  # of an index: no such chunk
_ENTRY = 16  # bytes of an index a chunk

Look = Callable[[bytes], None]


class Codec(NamedTuple):
    """A step of how chunks are stored, in the order of writing."""

    name: str
    options: Mapping[str, Any]


class Looked(NamedTuple):
    """What looks at the bytes of a chunk, None where nothing packs them, and how many they are at most, unpacked."""

    look: Look | None
    most: int


class Guard:
    """What is looked at of every chunk that is read, once the array is known.

    Args:
        path: of the image.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look: Look | None = None
        self._inner: Look | None = None  # of chunks of a shard
        self._index = 0  # bytes at the start of a shard that are its index
        self._promised = 0

    def watch(self, array: Any) -> None:
        """From now on, look at the chunks of an array of the zarr library.

        Raises:
            DataError: if they are packed twice, which no one can bound.
        """
        metadata = array.metadata
        if metadata.zarr_format == 2:
            stored = [*(metadata.filters or ()), *([metadata.compressor] if metadata.compressor is not None else [])]
            codecs = [_codec(str(one.codec_id), one.get_config()) for one in stored]
        else:
            codecs = _codecs([one.to_dict() for one in metadata.codecs])
        values = math.prod(array.shards or array.chunks)
        self._look, self._promised = self._looked(codecs, values, np.dtype(array.dtype).itemsize)
        if codecs and codecs[0].name == _SHARDS:  # of these alone, chunks are read one by one
            self._inner = self._within(codecs[0], np.dtype(array.dtype).itemsize).look
            count = values // math.prod(codecs[0].options["chunk_shape"])
            self._index = self._index_of(codecs[0], count)[0] if _at_start(codecs[0]) else 0

    def _looked(self, codecs: Sequence[Codec], values: int, size: int) -> Looked:
        """Of chunks of so many values of so many bytes."""
        packed = [number for number, one in enumerate(codecs) if one.name in _PACKINGS]
        shards = next((number for number, one in enumerate(codecs) if one.name == _SHARDS), None)
        before = codecs[: len(codecs) if shards is None else shards]
        widest = max(
            [size, *(np.dtype(one.options[key]).itemsize for one in before for key in _TYPES if _typed(one, key))]
        )
        most, inner = values * widest + _SUM * len(codecs), None
        if shards is not None:
            inner, most = self._sharded(codecs[shards], values, widest, most)
        if len(packed) + (inner is not None) > 1:
            raise self._odd()
        if not packed and inner is None:
            return Looked(None, most)
        last = packed[0] if packed else shards
        assert last is not None
        sums = [one.options.get("location", _SUMS[one.name]) for one in codecs[last + 1 :] if one.name in _SUMS]
        start, end = _SUM * sums.count("start"), _SUM * sums.count("end")
        promised = most

        def look(data: bytes) -> None:
            part = data[start : len(data) - end] if sums else data
            if inner is not None:
                inner(part)
            elif exceeds(codecs[last].name, part, promised, codecs[last].options):
                raise self._grown()

        return Looked(look, most)

    def _within(self, shards: Codec, size: int) -> Looked:
        """Of the chunks of a shard."""
        return self._looked(_codecs(shards.options["codecs"]), math.prod(shards.options["chunk_shape"]), size)

    def _sharded(self, shards: Codec, values: int, size: int, most: int) -> Looked:
        """Of a whole shard, through its index."""
        inner, count = self._within(shards, size), values // math.prod(shards.options["chunk_shape"])
        most = max(most, count * inner.most) + _ENTRY * count + _SUM
        look = inner.look
        if look is None:
            return Looked(None, most)
        length, order = self._index_of(shards, count)
        start = _at_start(shards)

        def each(shard: bytes) -> None:
            if len(shard) < length:
                return
            places = np.frombuffer(shard[:length] if start else shard[-length:], order, 2 * count).reshape(-1, 2)
            for begin, part in {(int(first), int(second)) for first, second in places}:
                if begin != _EMPTY:
                    look(shard[begin : begin + part])

        return Looked(each, most)

    def _index_of(self, shards: Codec, count: int) -> tuple[int, str]:
        """Bytes of the index of a shard, and the type of its numbers."""
        codecs = _codecs(shards.options.get("index_codecs", ()))
        if not {one.name for one in codecs} <= {"bytes", "crc32c"}:
            raise self._odd()
        big = any(one.options.get("endian") == "big" for one in codecs)
        return _ENTRY * count + _SUM * sum(one.name in _SUMS for one in codecs), ">u8" if big else "<u8"

    def check_size(self, key: str, file: Path) -> None:
        """Refuse a file of a chunk that is larger than all that it may hold."""
        told = self._promised and not key.endswith(_METADATA) and file.is_file()
        if told and file.stat().st_size > 2 * self._promised + SPARE:
            raise self._grown()

    def check(self, key: str, data: bytes, first: int | None) -> None:
        """Refuse a chunk that unpacks to more than it declares; `first`: its first byte in a shard, None of a whole file."""
        look = self._look if first is None else self._inner
        index = first == 0 and len(data) == self._index
        if look is not None and not key.endswith(_METADATA) and not index:
            look(data)

    def _grown(self) -> Exception:
        return data_error(self._path, "is damaged: a chunk unpacks to more than its metadata declare", AGAIN)

    def _odd(self) -> Exception:
        return data_error(
            self._path, "has chunks that are packed twice, which are not read", "write them with one codec"
        )


def _codec(name: str, options: Mapping[str, Any]) -> Codec:
    return Codec(name.removeprefix("numcodecs."), options)


def _codecs(stored: Sequence[Mapping[str, Any]]) -> list[Codec]:
    """Of what the metadata of Zarr 3 state."""
    return [_codec(str(one["name"]), one.get("configuration") or {}) for one in stored]


def _typed(codec: Codec, key: str) -> bool:
    return key in codec.options and codec.options[key] is not None


def _at_start(shards: Codec) -> bool:
    return str(getattr(where := shards.options.get("index_location", "end"), "value", where)) == "start"


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
