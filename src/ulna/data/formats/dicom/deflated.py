"""DICOM files whose elements are packed as a whole: how much that is, before pydicom unpacks all of it."""

from __future__ import annotations

import zlib
from pathlib import Path

from ulna.data.formats.limits import check_memory

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LARGEST_META = 1 << 12
_PIECE = 1 << 20


def check_deflated(path: Path) -> None:
    """Refuse a deflated file that unpacks to more than half of the memory; any other is passed over.

    Raises:
        DataError: saying so.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_LARGEST_META)
        if start[128:132] != b"DICM" or _DEFLATED not in start:
            return
        file.seek(144 + int.from_bytes(start[140:144], "little"))  # behind the first group, whose length comes first
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not unpacker.eof and (packed := unpacker.unconsumed_tail or file.read(_PIECE)):
            try:
                total += len(unpacker.decompress(packed, _PIECE))
            except zlib.error:  # pydicom says what is wrong
                return
            check_memory(path, total)
