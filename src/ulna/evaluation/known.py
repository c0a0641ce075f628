"""What is compared: how the values of references and masks are read, and voxels that a reference leaves open left out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.recipe import Labels


def known_alone(prediction: NDArray[Any], reference: NDArray[Any], labels: Labels) -> tuple[NDArray[Any], NDArray[Any]]:
    """A prediction and its reference with background in both where the reference says `Labels.ignored`.

    Both lose the same voxels, so counts leave them out. Surfaces end where the class is not known, in both alike.

    Shape:
        (*S) and (*S), or (K, *S) and (K, *S) if multilabel
    """
    if labels.ignored is None:
        return prediction, reference
    known = reference != labels.ignored
    return np.where(known, prediction, 0).astype(prediction.dtype), np.where(known, reference, 0).astype(
        reference.dtype
    )


def known_probabilities(
    probabilities: NDArray[Any] | None, reference: NDArray[Any], labels: Labels
) -> NDArray[Any] | None:
    """Probabilities (K, *S) with NaN where the reference, (*S) or (K, *S), says `Labels.ignored`."""
    if probabilities is None or labels.ignored is None:
        return probabilities
    return np.where(reference == labels.ignored, np.nan, probabilities)


def read_as(names: Labels, declared: Labels | None, *, written_by_ulna: bool) -> tuple[Labels, Labels]:
    """How the values of the references are read, and those of the masks.

    References are read as they declare it themselves, where that gives the same classes; else as those of the training were.
    Masks that `predict` wrote hold class indices, or the values of an order; those of others hold what the references hold.
    """
    own = declared if declared is not None and _kind(declared) == _kind(names) else names
    return own, names.of_masks if written_by_ulna else own


def _kind(labels: Labels) -> tuple[tuple[str, ...], bool]:
    return labels.foreground, labels.multilabel
