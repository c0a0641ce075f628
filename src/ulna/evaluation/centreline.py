"""Skeletons of vessels and other tubes, and clDice: how much of each centreline lies in the other mask."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.evaluation.surfaces import Mask, bounding_box, joint_box

_AT_ONCE = 1 << 16  # voxels whose neighbourhoods are looked at together


def cldice(prediction: Mask, reference: Mask, empty_score: float | None = None) -> float:
    """The harmonic mean of the share of the predicted centreline in the reference, and of the reference's in the prediction.

    0 where one mask is empty or no centreline is hit; where both are empty `empty_score`, or NaN.

    Source: clDice (shit2021), Eq. 1 and 2.
    """
    if not prediction.any() and not reference.any():
        return math.nan if empty_score is None else empty_score
    if not prediction.any() or not reference.any():
        return 0.0
    box = joint_box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    precision = float(reference[skeleton(prediction)].mean())
    sensitivity = float(prediction[skeleton(reference)].mean())
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0


def skeleton(mask: Mask) -> Mask:
    """Centrelines one voxel wide, with as many pieces, holes and tunnels as the mask: (*S) -> (*S), 2D or 3D.

    Layer by layer from every side, voxels are taken off without which the mask hangs together as before and that end no
    line. Voxels of one parity are no neighbours, so each lot may go at once.

    Source: directional thinning with simple points (palagyi1998), in 2^n subfields (bertrand1995). Time grows with the
    thickness of the mask: it is meant for tubes.
    """
    thin = np.zeros_like(mask)
    if not mask.any():
        return thin
    box = bounding_box(mask)
    body = np.pad(mask[box], 1)
    strides = np.array([math.prod(body.shape[axis + 1 :]) for axis in range(body.ndim)])
    near = np.array([step for step in product((-1, 0, 1), repeat=body.ndim) if any(step)])
    around = near @ strides
    faces = around[np.abs(near).sum(axis=1) == 1]
    flat = body.ravel()
    points = np.flatnonzero(flat)
    simple = _Simple(near)
    while True:
        before = points.size
        for face in faces:
            border = points[~flat[points + face]]
            parity = sum((at & 1) << bit for bit, at in enumerate(np.unravel_index(border, body.shape)))
            for subfield in range(2**body.ndim):
                lot = border[parity == subfield]
                for first in range(0, lot.size, _AT_ONCE):  # no two of one lot are neighbours
                    some = lot[first : first + _AT_ONCE]
                    flat[some[simple.of(flat[some[:, None] + around])]] = False
            points = points[flat[points]]
        if points.size == before:
            break
    thin[box] = body[(slice(1, -1),) * body.ndim]
    return thin


class _Simple:
    """Which voxels may go, by the voxels around them; what is found out about a neighbourhood is kept.

    Args:
        near: (neighbours, dims), where each lies: all 8 or 26.
    """

    def __init__(self, near: NDArray[Any]) -> None:
        apart = np.abs(near[:, None] - near[None])
        far = np.abs(near).sum(axis=1)
        self._touching = (apart.max(axis=-1) <= 1).astype(np.float32)
        self._face_to_face = (apart.sum(axis=-1) == 1).astype(np.float32)
        self._faces = far == 1
        # the background is connected face to face: in 3D among the 18 neighbours that share a face or an edge
        self._between = far <= 2
        self._powers = 1 << np.arange(len(near), dtype=np.int64)
        self._known = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)

    def of(self, near: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(N, neighbours) -> (N,)."""
        codes, back = np.unique(near @ self._powers, return_inverse=True)
        known, answers = self._known
        new = np.setdiff1d(codes, known, assume_unique=True)
        if new.size:
            order = np.argsort(merged := np.concatenate([known, new]))
            found = self._decide((new[:, None] & self._powers) != 0)
            known, answers = self._known = merged[order], np.concatenate([answers, found])[order]
        return answers[np.searchsorted(known, codes)][back]

    def _decide(self, near: NDArray[np.bool_]) -> NDArray[np.bool_]:
        outside = ~near & self._between
        inside_is_one = _one_piece(near, near, self._touching)
        outside_is_one = _one_piece(outside, outside & self._faces, self._face_to_face)
        return (near.sum(axis=1) > 1) & inside_is_one & outside_is_one


def _one_piece(members: NDArray[np.bool_], wanted: NDArray[np.bool_], linked: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether all wanted members, and at least one, hang together through members."""
    reached = np.zeros_like(members)
    rows = np.flatnonzero(wanted.any(axis=1))
    reached[rows, wanted[rows].argmax(axis=1)] = True
    while True:
        more = members & (reached | (reached.astype(np.float32) @ linked > 0))
        if np.array_equal(more, reached):
            return np.asarray(wanted.any(axis=1) & ~(wanted & ~reached).any(axis=1))
        reached = more
