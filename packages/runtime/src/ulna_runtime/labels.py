"""Logits to probabilities, and probabilities to label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.pipeline import Labels
from ulna_runtime.volume import label_dtype

Maps = NDArray[np.float32]


def probabilities(logits: Maps, multilabel: bool) -> Maps:
    """A sigmoid for one map or with `multilabel`, else a softmax over the maps: (K, ...) -> the same, float32."""
    if multilabel or len(logits) == 1:
        small = np.exp(-np.abs(logits))  # never above 1, so it never overflows
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def to_labels(maps: Maps, labels: Labels, threshold: float) -> NDArray[Any]:
    """Probabilities to a label map in the smallest unsigned type: (K, *S) -> (*S), or (K, *S) of 0 and 1 if multilabel."""
    if labels.multilabel:
        return (maps > threshold).astype(np.uint8)
    if len(maps) == 1:
        return (maps[0] > threshold).astype(np.uint8)
    return maps.argmax(0).astype(label_dtype(len(maps) - 1))


def background(labels: Labels) -> Maps:
    """The probabilities of a voxel that no network saw: (K)."""
    maps = np.zeros(labels.outputs, np.float32)
    if not labels.multilabel and labels.outputs > 1:
        maps[0] = 1.0
    return maps


def in_file(mask: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """A mask as its file holds it: one map of the values of `Labels.order` where it has one, else as it is."""
    if labels.order is None:
        return mask
    written = np.zeros(mask.shape[1:], label_dtype(max(labels.order)))
    for value, one in zip(labels.order, mask, strict=True):  # the later over the earlier
        written[one != 0] = value
    return written
