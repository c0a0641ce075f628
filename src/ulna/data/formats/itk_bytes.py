"""The values of .mha and .nrrd files, read from their bytes: every byte is counted, every checksum is compared.

ITK fills a file that was cut short with zeros and says nothing.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.itk_header import LONGEST_HEADER, Header
from ulna.data.formats.limits import check_memory, check_pixels, check_promise
from ulna.data.formats.meta_image import read_meta_image
from ulna.data.formats.nrrd import read_nrrd
from ulna.data.formats.slabs import Float32, fill, native
from ulna.data.formats.source import AGAIN, data_error
from ulna.errors import DataError

_CHUNK = 1 << 20


class Stored(NamedTuple):
    """What a file stores.

    Args:
        values: with the axes of the file, the fastest first; real values are float32.
        header: what is stated of them.
        too_large: how many values float32 does not hold, and the largest; None for none.
    """

    values: NDArray[Any]
    header: Header
    too_large: tuple[int, float] | None = None


def stored(path: Path) -> Stored:
    """Read a .mha or .nrrd file.

    Raises:
        DataError: if the header cannot be read, or the bytes are not exactly what it promises.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LONGEST_HEADER)
        try:
            header = read_nrrd(path, start) if start.startswith(b"NRRD") else read_meta_image(path, start)
        except DataError:
            raise
        except KeyError as error:
            raise data_error(path, f"has a header that does not state {error.args[0]}", AGAIN) from None
        except (ValueError, OverflowError) as error:
            raise data_error(path, f"has a header that cannot be read ({error})", AGAIN) from None
        return _read_values(path, file, header, size - header.start)


def _read_values(path: Path, file: IO[bytes], header: Header, held: int) -> Stored:
    expected = math.prod(header.sizes) * header.dtype.itemsize
    if header.length is not None and header.length != held:
        how = "is cut short" if header.length > held else "is damaged"
        raise data_error(path, f"{how}: the header promises {header.length} packed bytes, {held} follow", AGAIN)
    promise = f"is cut short: the header promises {expected} bytes of values, the file holds {held}"
    check_pixels(path, header.sizes)
    check_promise(path, promise, expected, held, packed=header.window is not None)
    if header.window is None and held > expected:
        what = f"is damaged: the header promises {expected} bytes of values, the file holds {held}"
        raise data_error(path, what, AGAIN)
    values = np.empty(header.sizes, native(header.dtype))
    check_memory(path, values.nbytes)
    convert = Float32() if header.dtype.kind == "f" else None
    file.seek(header.start)
    if header.window is None:
        fill(values, file.read, header.dtype, convert)
    else:
        stream = _Inflated(path, file, header.window)
        found = fill(values, stream.read, header.dtype, convert)
        stream.end(found, expected)
    large = convert.too_large if convert is not None else None
    return Stored(values, header, large)


class _Inflated:
    """What zlib has packed, unpacked as it is asked for."""

    def __init__(self, path: Path, file: IO[bytes], window: int) -> None:
        self.path, self.file = path, file
        self.unpacker = zlib.decompressobj(window)

    def read(self, count: int) -> bytearray:
        """Up to `count` bytes; fewer where the stream ends.

        Raises:
            DataError: if the packed bytes are damaged.
        """
        data = bytearray()
        while len(data) < count and not self.unpacker.eof:
            packed = self.unpacker.unconsumed_tail or self.file.read(_CHUNK)
            if not packed:
                break
            try:
                data += self.unpacker.decompress(packed, count - len(data))
            except zlib.error as error:
                raise data_error(self.path, f"is damaged ({error})", AGAIN) from None
        return data

    def end(self, found: int, expected: int) -> None:
        """Judge the end of the stream, where the checksum stands; what goes on is not unpacked.

        Raises:
            DataError: if there is more or less than expected.
        """
        more = len(self.read(1)) if found == expected else 0  # on to the checksum
        if found + more > expected:
            raise data_error(
                self.path, f"is damaged: more than the {expected} bytes of its header are packed in it", AGAIN
            )
        if not self.unpacker.eof:
            raise data_error(self.path, "is cut short: the compressed data end too early", AGAIN)
        if found < expected:
            what = f"is cut short: the header promises {expected} bytes of values, the file holds {found}"
            raise data_error(self.path, what, AGAIN)
        if self.unpacker.unused_data or self.file.read(1):
            raise data_error(self.path, "is damaged: bytes follow the compressed values", AGAIN)
