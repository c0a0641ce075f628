"""The bytes of PNG, JPEG and BMP files, before anything is decoded: whole to the end, and no more promised than held."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from ulna.data.formats.limits import MOST_PIXELS, check_pixels, check_promise
from ulna.data.formats.source import AGAIN, data_error

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types of PNG
_JPEG_PART = re.compile(rb"\xff[\xc0-\xcf\xda-\xef\xfe]")
_JPEG_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # what ends a run of pixels: neither a stuffed byte nor a restart


def check_whole(path: Path, data: bytes, kind: str) -> None:
    """Find what Pillow lets pass: a missing end, parts that do not follow each other, in a PNG a flipped bit."""
    if kind == "PNG":
        _check_png(path, data)
    elif kind == "JPEG":
        _check_jpeg(path, data)
    else:
        _check_bmp(path, data)


def _check_bmp(path: Path, data: bytes) -> None:
    width, height, bits, packing = (
        int.from_bytes(data[at : at + size], "little", signed=True) for at, size in ((18, 4), (22, 4), (28, 2), (30, 4))
    )
    if int.from_bytes(data[14:18], "little") < 40:  # the first kind of header has no packing
        return
    needed = int.from_bytes(data[10:14], "little") + (width * bits + 31) // 32 * 4 * abs(height)
    if packing in (0, 3) and needed > len(data):  # 0, 3: not packed
        raise data_error(path, f"is cut short: it needs {needed} bytes and holds {len(data)}", AGAIN)


def _check_jpeg(path: Path, data: bytes) -> None:
    """Walk the parts of a JPEG to its end. It has no checksum: a flipped bit inside its pixels cannot be found."""
    at, scanned = 2, False
    while (mark := data[at : at + 2]) != b"\xff\xd9":
        if len(mark) < 2 or at + 4 > len(data):
            raise data_error(path, "is cut short: the end of the picture is missing", AGAIN)
        if mark == b"\xff\xff":  # padding
            at += 1
            continue
        if not _JPEG_PART.fullmatch(mark):
            raise data_error(path, f"is damaged: byte {at} belongs to no part of a JPEG", AGAIN)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if mark == b"\xff\xda":
            scanned = True
            end = _JPEG_MARK.search(data, at)
            at = end.start() if end else len(data)
    if not scanned:
        raise data_error(path, "is damaged: it holds no pixels", AGAIN)


def _check_png(path: Path, data: bytes) -> None:
    at = len(PNG_MAGIC)
    while True:
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(data) < end or len(name) < 4:
            raise data_error(path, f"is cut short: {len(data)} bytes, and the picture goes on", AGAIN)
        body, checksum = data[at + 4 : end - 4], int.from_bytes(data[end - 4 : end], "big")
        if zlib.crc32(body) != checksum:
            raise data_error(path, f"is damaged: wrong checksum in its {name.decode('latin-1')} part", AGAIN)
        if name == b"IHDR" and length == 13:
            width, height = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big")
            bits = width * height * body[12] * _SAMPLES.get(body[13], 1)  # after the name and the size
            what = f"declares {width} x {height} pixels in {len(data)} bytes"
            check_pixels(path, (width, height), MOST_PIXELS)
            check_promise(path, what, bits // 8, len(data), packed=True)
        if name == b"acTL" and (frames := int.from_bytes(body[4:8], "big")) > 1:
            what = f"is an animation of {frames} pictures"
            raise data_error(path, what, "save each as a file of its own, or all as a stack (TIFF)")
        if name == b"IEND":
            return
        at = end
