"""DICOM files whose elements are packed as a whole: how much that is, before pydicom unpacks all of it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from ulna.data.formats.limits import check_memory

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIECE = 1 << 20


def check_deflated(path: Path) -> None:
    """Refuse a deflated file that unpacks to more than half of the memory; any other is passed over.

    Raises:
        DataError: saying so.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(132 if file.read(132)[128:] == b"DICM" else 0)
        if not _deflated_from_here(file):
            return
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not unpacker.eof and (packed := unpacker.unconsumed_tail or file.read(_PIECE)):
            try:
                total += len(unpacker.decompress(packed, _PIECE))
            except zlib.error:  # pydicom says what is wrong
                return
            check_memory(path, total)


def _deflated_from_here(file: BinaryIO) -> bool:
    """Read on behind the first group, as pydicom does: its length need not be stated, and elements may be of any length."""
    from pydicom.filereader import read_dataset

    try:
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
        return str(meta.get("TransferSyntaxUID", "")) == _DEFLATED
    except Exception:  # pydicom raises many types, and again where it reads the file
        return False
