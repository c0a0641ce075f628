"""Whether packed bytes unpack to more than their header promised: counted a piece at a time, and nothing of it is kept.

Libraries that unpack a chunk at once take the memory that its bytes ask for. So bytes of strangers are counted before: what
can be unpacked by pieces is, and of the rest the format says how much it is, or at most.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

PIECE = 1 << 20
SPARE = 1 << 16  # bytes beyond what is promised that no one minds
_ZSTD_BLOCK = 1 << 17  # the most that one block unpacks to
_FULL = 64  # of how many blocks one is taken to be full
_LZMA_MEMORY = 1 << 28  # of its dictionary, which a header may ask for
_PACKBITS_MOST = 64  # bytes that one unpacks to
_JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_JPEG_ALONE = {0x00, 0x01, *range(0xD0, 0xD9)}  # markers without a length, and what is none


def exceeds(packing: str, data: bytes, promised: int, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether data unpack to more than was promised, and a little; False where the packing is not known, or data are damaged.

    Args:
        packing: of `PACKINGS`.
        data: packed.
        promised: bytes.
        options: of the packing, as a Zarr array states them: `format` and `filters` of lzma.
    """
    parts = PACKINGS.get(packing)
    if parts is None:
        return False
    most = promised + SPARE
    try:
        if packing == "zstd":
            return _zstd_exceeds(data, most)
        if packing == "packbits" and _PACKBITS_MOST * len(data) <= most:
            return False
        total = 0
        for size in _lzma(data, options) if packing == "lzma" else parts(data):
            total += size
            if total > most:
                return True
    except lzma.LZMAError as error:
        return "Memory usage limit" in str(error)
    except (zlib.error, OSError, EOFError, ValueError, struct.error, IndexError):
        return False  # whoever unpacks them says what is wrong
    return False


def _deflate(window: int) -> Callable[[bytes], Iterator[int]]:
    def parts(data: bytes) -> Iterator[int]:
        unpacker, rest = zlib.decompressobj(window), data
        while rest:
            yield len(unpacker.decompress(rest, PIECE))
            rest = unpacker.unconsumed_tail
            if unpacker.eof and window == 31:  # gzip goes on with what follows
                rest, unpacker = unpacker.unused_data, zlib.decompressobj(window)
        yield len(unpacker.decompress(b"", PIECE))

    return parts


def _by_stream(make: Callable[[], Any]) -> Callable[[bytes], Iterator[int]]:
    """Of libraries that say when they want more, one stream after the other."""

    def parts(data: bytes) -> Iterator[int]:
        while data:
            unpacker, given = make(), data
            while not unpacker.eof:
                found = len(unpacker.decompress(given, PIECE))
                if not found and unpacker.needs_input:
                    return
                given = b""
                yield found
            data = unpacker.unused_data

    return parts


def _lzma(data: bytes, options: Mapping[str, Any] = MappingProxyType({})) -> Iterator[int]:
    """Of streams in the format that is stated, else in any that says which it is."""
    kind, filters = options.get("format", lzma.FORMAT_AUTO), options.get("filters")
    if kind != lzma.FORMAT_RAW:
        return _by_stream(lambda: lzma.LZMADecompressor(format=kind, memlimit=_LZMA_MEMORY, filters=filters))(data)
    if any(int(one.get("dict_size") or 0) > _LZMA_MEMORY for one in filters or ()):
        raise lzma.LZMAError("Memory usage limit exceeded")  # which only streams with a header are held to
    return _by_stream(lambda: lzma.LZMADecompressor(format=kind, filters=filters))(data)


def _zstd_exceeds(data: bytes, most: int) -> bool:
    """By what frames say that they hold, for which a library takes the memory, and by their blocks where they say nothing.

    Blocks of unknown size may be full, or small ones that a writer flushed: where that matters, they are unpacked into what
    is allowed, or, without a library for it, one in `_FULL` is taken to be full.
    """
    sure = open_ = 0
    for size, known in _zstd(data):
        sure, open_ = (sure + size, open_) if known else (sure, open_ + size)
        if sure > most:
            return True
    if sure + open_ <= most:
        return False
    try:
        from numcodecs.zstd import decompress
    except ImportError:
        return sure + open_ // _FULL > most
    try:
        decompress(data, np.empty(most, np.uint8))
    except RuntimeError as error:
        return "too small" in str(error)
    return False


def _zstd(data: bytes) -> Iterator[tuple[int, bool]]:
    """What frames say that they hold, or their blocks hold at most, and whether it is just that."""
    at = 0
    while at + 5 <= len(data):
        (magic,) = struct.unpack_from("<I", data, at)
        if 0x184D2A50 <= magic <= 0x184D2A5F:  # passed over
            at += 8 + struct.unpack_from("<I", data, at + 4)[0]
            continue
        flags = data[at + 4]
        single, size_flag = flags >> 5 & 1, flags >> 6
        length = (single, 2, 4, 8)[size_flag]
        begin = at + 5 + (not single) + (0, 1, 2, 4)[flags & 3]
        window = 0 if single else (1 << 10 + (data[at + 5] >> 3)) * (8 + (data[at + 5] & 7)) // 8
        at, last = begin + length, False
        if length:
            yield int.from_bytes(data[begin:at], "little") + (256 if length == 2 else 0), True
        while not last and at + 3 <= len(data):
            block = int.from_bytes(data[at : at + 3], "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if not length:
                yield (min(window, _ZSTD_BLOCK), False) if kind == 2 else (size, True)
            at += 3 + (1 if kind == 1 else size)
        at += 4 * (flags >> 2 & 1)


def _packbits(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):  # by pieces in numpy, with the places of runs found by doubled jumps, it took longer
        count = data[at]
        yield count + 1 if count < 128 else 0 if count == 128 else 257 - count
        at += 1 if count == 128 else 2 if count > 128 else count + 2


def _jpeg(data: bytes) -> Iterator[int]:
    """By the first header of a frame, before which bytes of no meaning may lie, as for libjpeg."""
    at = 2
    while True:
        at = data.index(0xFF, at)
        while data[at] == 0xFF:  # as many as a writer likes
            at += 1
        code = data[at]
        at += 1
        if code in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            yield height * width * data[at + 7] * (2 if data[at + 2] > 8 else 1)
            return
        if code not in _JPEG_ALONE:
            at += struct.unpack_from(">H", data, at)[0]


def _told(offset: int) -> Callable[[bytes], Iterator[int]]:
    """Of formats that say how much they hold, for which a library takes the memory at once."""

    def parts(data: bytes) -> Iterator[int]:
        yield struct.unpack_from("<I", data, offset)[0]

    return parts


PACKINGS: dict[str, Callable[[bytes], Iterator[int]]] = {
    "zlib": _deflate(15),
    "gzip": _deflate(31),
    "lzma": _lzma,
    "bz2": _by_stream(bz2.BZ2Decompressor),
    "zstd": lambda data: (size for size, _ in _zstd(data)),
    "blosc": _told(4),
    "lz4": _told(0),
    "packbits": _packbits,
    "jpeg": _jpeg,
}
