"""A case to be scored."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from ulna.data.volume import Volume


class Pair(NamedTuple):
    """A case to be scored.

    Args:
        case: its id.
        prediction: (*S), class indices; (K, *S) of 0 and 1 for overlapping classes.
        reference: the same.
        volume: on their grid; the image or the reference as it was read.
    """

    case: str
    prediction: NDArray[Any]
    reference: NDArray[Any]
    volume: Volume
