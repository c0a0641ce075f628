"""A case to be scored."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from ulna.data.formats.opening import hollow
from ulna.data.volume import Volume


class Pair(NamedTuple):
    """A case to be scored.

    Args:
        case: its id.
        prediction: (*S), class indices; (K, *S) of 0 and 1 for overlapping classes.
        reference: the same.
        volume: on their grid; the image or the reference as it was read.
        probabilities: (K, *S), of every structure, NaN where the class is not known; None: they are not known.
        objects: (*S) and (*S), the numbers of objects in prediction and reference; None: their connected components.
    """

    case: str
    prediction: NDArray[Any]
    reference: NDArray[Any]
    volume: Volume
    probabilities: NDArray[Any] | None = None
    objects: tuple[NDArray[Any], NDArray[Any]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        held = [self.prediction, self.reference, *(self.objects or ())]
        return sum(one.nbytes for one in held) + (0 if self.probabilities is None else self.probabilities.nbytes)


def without_values(volume: Volume) -> Volume:
    """A volume of the same place and shape, whose values take no memory and are 0."""
    return volume.with_array(hollow(volume.array.shape, volume.array.dtype))
