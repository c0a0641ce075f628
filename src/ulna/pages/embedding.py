"""What a page holds in itself: pictures as data addresses, colours as CSS writes them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST = 60_000  # bytes of a picture


def embed(picture: NDArray[np.uint8], *, exact: bool = True, largest: int = LARGEST) -> str:
    """A picture (H, W, 3) as a data address: PNG where that is small, else the best JPEG that is.

    Args:
        picture: 8 bits a colour.
        exact: False takes a JPEG at once, which is written ten times as fast.
        largest: bytes that it may have; the worst JPEG may have more.
    """
    data = _encoded(picture, "png", optimize=True) if exact else b""
    if exact and len(data) <= largest:
        return address(data, "png")
    for quality in (88, 75, 60, 40):
        data = _encoded(picture, "jpeg", quality=quality, subsampling=0)
        if len(data) <= largest:
            break
    return address(data, "jpeg")


def embed_lines(picture: NDArray[np.uint8]) -> str:
    """A picture of few colours (H, W, 4), transparent between its lines, as the data address of a small PNG."""
    with (
        Image.fromarray(picture) as whole,
        whole.quantize(method=Image.Quantize.FASTOCTREE) as few,
        io.BytesIO() as file,
    ):
        few.save(file, "png")
        return address(file.getvalue(), "png")


def _encoded(picture: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, kind, **options)
        return file.getvalue()


def address(data: bytes, kind: str) -> str:
    """The bytes of a picture file as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def css(colour: Iterable[int]) -> str:
    """A colour of 8 bits a part.

    Example:
        >>> css((20, 112, 95))
        '#14705f'
    """
    return "#" + "".join(f"{part:02x}" for part in colour)
