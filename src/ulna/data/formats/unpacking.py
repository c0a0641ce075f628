"""Whether packed bytes unpack to more than their header promised: counted a piece at a time, and nothing of it is kept.

Libraries that unpack a chunk at once take the memory that its bytes ask for. So bytes of strangers are counted before: what
can be unpacked by pieces is, and of the rest the format says how much it is, or at most.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

PIECE = 1 << 20
SPARE = 1 << 16  # bytes beyond what is promised that no one minds
_ZSTD_BLOCK = 1 << 17  # the most that one block unpacks to
_LZMA_MEMORY = 1 << 28  # of its dictionary, which a header may ask for
_JPEG_SIZES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def exceeds(packing: str, data: bytes, promised: int) -> bool:
    """Whether data unpack to more than was promised, and a little; False where the packing is not known, or data are damaged.

    Args:
        packing: of `PACKINGS`.
        data: packed.
        promised: bytes.
    """
    parts = PACKINGS.get(packing)
    if parts is None:
        return False
    total = 0
    try:
        for size in parts(data):
            total += size
            if total > promised + SPARE:
                return True
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, struct.error, IndexError):
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


def _zstd(data: bytes) -> Iterator[int]:
    """What a frame says that it holds, for which a library takes the memory, and no more; where it says nothing, a quarter of
    what its blocks hold at most, as some writers make small ones."""
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
        at, last = begin + length, False
        if length:
            yield int.from_bytes(data[begin:at], "little") + (256 if length == 2 else 0)
        while not last and at + 3 <= len(data):
            block = int.from_bytes(data[at : at + 3], "little")
            last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            if not length:
                yield (_ZSTD_BLOCK if kind == 2 else size) // 4
            at += 3 + (1 if kind == 1 else size)
        at += 4 * (flags >> 2 & 1)


def _packbits(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        count = data[at]
        yield count + 1 if count < 128 else 0 if count == 128 else 257 - count
        at += 1 if count == 128 else 2 if count > 128 else count + 2


def _jpeg(data: bytes) -> Iterator[int]:
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        if data[at + 1] in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            yield height * width * data[at + 9] * (2 if data[at + 4] > 8 else 1)
            return
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _told(offset: int) -> Callable[[bytes], Iterator[int]]:
    """Of formats that say how much they hold, for which a library takes the memory at once."""

    def parts(data: bytes) -> Iterator[int]:
        yield struct.unpack_from("<I", data, offset)[0]

    return parts


PACKINGS: dict[str, Callable[[bytes], Iterator[int]]] = {
    "zlib": _deflate(15),
    "gzip": _deflate(31),
    "lzma": _by_stream(lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)),
    "bz2": _by_stream(bz2.BZ2Decompressor),
    "zstd": _zstd,
    "blosc": _told(4),
    "lz4": _told(0),
    "packbits": _packbits,
    "jpeg": _jpeg,
}
