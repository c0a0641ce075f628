"""What is compared: how the values of references and masks are read, and voxels that a reference leaves open left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.label_maps import value_counts, without_colour
from ulna.data.formats.read import read_labels
from ulna.data.layout.classes import classes_found
from ulna.data.layout.masks import Masks
from ulna.errors import UsageError, printable
from ulna.evaluation.choice import ALL, AUTO, FAMILIES
from ulna.recipe import Labels, parse
from ulna.system.outputs import PREDICT_FILE


def known_alone(prediction: NDArray[Any], reference: NDArray[Any], labels: Labels) -> tuple[NDArray[Any], NDArray[Any]]:
    """A prediction and its reference with background in both where the reference says `Labels.ignored`.

    Both lose the same voxels, so counts leave them out. Surfaces end where the class is not known, in both alike.

    Shape:
        (*S) and (*S), or (K, *S) and (K, *S) if multilabel
    """
    if labels.ignored is None:
        return prediction, reference
    known = reference != labels.ignored
    ours, theirs = (
        np.where(known, one, 0).astype(one.dtype, copy=False) for one in (prediction, reference)
    )  # in their own type already, as numpy 2 has it
    return ours, theirs


def values_in(labels: Labels, mask_values: Sequence[int] | None) -> Labels:
    """How pictures of masks that ulna wrote are read: as `Labels.of_masks`, or by the values of the training labels."""
    if mask_values is None or labels.multilabel or tuple(mask_values) in (indices(labels), (0, 255)):
        return labels.of_masks  # which takes 0 and 255 for 0 and 1
    background, *values = mask_values
    read = {"names": labels.names, "background": (background,), "values": [(value,) for value in values]}
    # a background of another value leaves 0 to what nobody knows the class of
    return parse(Labels, {**read, "ignore": (0,) if background else ()}, source=PREDICT_FILE)


def numbered(about: Mapping[str, Any], labels: Labels) -> Labels | None:
    """How masks that hold numbers of objects are read, of which the one structure is made; None where they hold classes.

    Args:
        about: predict.json.
        labels: the classes.
    """
    return Labels(names=labels.names, instances=True) if about.get("instances") is True else None


def indices(labels: Labels) -> tuple[int, ...]:
    """Of the background and all classes."""
    return tuple(range(len(labels.foreground) + 1))


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


def empty_score(about: Mapping[str, Any]) -> float | None:
    """What the recipe of the run says of empty cases, as `predict` wrote it down."""
    value = about.get("empty_score")
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def measured(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The families of measures that the recipe of the run names, as `predict` wrote them down; else the rule."""
    value = about.get("measured")
    return tuple(name for name in value if name in (AUTO, ALL, *FAMILIES)) if isinstance(value, list) else (AUTO,)


def mask_values(about: Mapping[str, Any], labels: Labels) -> tuple[int, ...] | None:
    """The values in pictures of masks, as `predict` wrote them down; None of an earlier version: class indices.

    Raises:
        UsageError: if they are not one value for the background and each class: other masks would be read than were written.
    """
    values, wanted = about.get("mask_values"), 2 if labels.stacked else len(labels.foreground) + 1
    if values is None:
        return None
    whole = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    if not whole or len(set(values)) != wanted or len(values) != wanted:
        raise UsageError(
            f"{PREDICT_FILE}: mask_values is {printable(str(values))}; expected {wanted} different whole numbers, "
            "one a class; predict again"
        )
    return tuple(values)


def classes_of(about: dict[str, Any], references: Masks, predicted: Masks, where: Path | str) -> Labels:
    """The classes as `predict` wrote them down, as a data set declares them, or as many as the masks hold."""
    if "labels" in about:
        return parse(Labels, about["labels"], source=PREDICT_FILE)
    declared = references.labels or predicted.labels
    if declared is not None:
        return declared
    values = {
        f"{kind} {name}": value_counts(without_colour(read_labels(source)))
        for kind, masks in (("reference", references), ("prediction", predicted))
        for name, source in masks.sources.items()
    }
    return classes_found(values, where)
