"""Large PNG files a strip of rows at a time: Pillow decodes a picture as a whole, and takes twice its memory.

A row of a PNG depends on the row above it alone. So its packed stream is unpacked here, and every strip of rows is given
to Pillow as a small PNG whose first row is the last one of the strip before.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ulna.data.formats.slabs import SLAB

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types
_GREY = 0
_KEPT = (b"PLTE", b"tRNS")  # what says how a row is read


def in_strips(data: bytes, most: int) -> bool:
    """Whether a PNG has more bytes of pixels than `most`, and Pillow keeps all of them, so that rows can be given back."""
    if data[12:16] != b"IHDR" or len(data) < 29:
        return False
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    kept = depth == 8 or (depth == 16 and colour == _GREY)
    return kept and not interlaced and width * height * _SAMPLES.get(colour, 1) * depth // 8 > most


def strips(data: bytes) -> Iterator[Image.Image]:
    """Pictures of some rows each, from the first row to the last.

    Raises:
        ValueError: if there are fewer rows than the header declares.
        zlib.error: if the stream is damaged.
    """
    head = data[16:29]
    width, height, depth, colour = struct.unpack(">IIBB", head[:10])
    length = 1 + width * _SAMPLES[colour] * depth // 8  # a byte says how the row is stored
    rows = max(1, SLAB // length)
    parts = list(_parts(data))
    kept = b"".join(_part(name, bytes(body)) for name, body in parts if name in _KEPT)
    stream = _unpacked([body for name, body in parts if name == b"IDAT"], rows * length)
    before, done = b"", 0
    for block in stream:
        count = min(len(block) // length, height - done)
        body = (b"\0" + before if before else b"") + block[: count * length]
        size = count + bool(before)
        start = _part(b"IHDR", struct.pack(">II", width, size) + head[8:])
        made = _MAGIC + start + kept + _part(b"IDAT", zlib.compress(body, 0)) + _part(b"IEND", b"")
        picture: Image.Image = PngImageFile(io.BytesIO(made))
        picture.load()
        if before:
            picture = picture.crop((0, 1, width, size))
        if count:
            last = np.asarray(picture.crop((0, picture.height - 1, width, picture.height)))
            before = last.astype(">u2").tobytes() if depth == 16 else last.tobytes()
            yield picture
        done += count
        if done == height:
            return
    raise ValueError(f"truncated: {done} of {height} rows")


def exif_of(data: bytes) -> bytes:
    """What a PNG says in EXIF; Pillow would decode all pixels to look for it behind them."""
    return next((bytes(body) for name, body in _parts(data) if name == b"eXIf"), b"")


def _parts(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), len(_MAGIC)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        yield name, view[at + 8 : at + 8 + length]
        at += 12 + length


def _part(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _unpacked(packed: list[memoryview], size: int) -> Iterator[bytearray]:
    """Blocks of `size` bytes, and a shorter one at the end."""
    unpacker, block = zlib.decompressobj(), bytearray()
    for piece in packed:
        rest: bytes | memoryview = piece
        while len(rest) and not unpacker.eof:
            block += unpacker.decompress(rest, size - len(block))
            rest = unpacker.unconsumed_tail
            if len(block) == size:
                yield block
                block = bytearray()
    while not unpacker.eof and (more := unpacker.decompress(unpacker.unconsumed_tail, size - len(block))):
        block += more
        if len(block) == size:
            yield block
            block = bytearray()
    yield block
