"""Closed contours to masks, and masks to closed contours.

Coordinates are (x, y) in pixels, with the centre of the first pixel at (0, 0). A pixel belongs to a contour if its centre
lies inside; a centre on an edge belongs to the side of larger x, or larger y, so that contours that share an edge share
no pixel. Several contours count by the even-odd rule: one in another is a hole, and so is what a keyhole encloses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Corner = tuple[int, int]


def fill(contours: Sequence[NDArray[np.float64]], rows: int, columns: int) -> NDArray[np.bool_]:
    """(rows, columns): the pixels inside an odd number of contours (n, 2)."""
    crossings = np.zeros((rows, columns + 1), np.int32)
    if not contours:
        return np.zeros((rows, columns), np.bool_)
    points = np.concatenate(contours)
    following = np.concatenate([np.roll(one, -1, axis=0) for one in contours])
    upward = points[:, 1] <= following[:, 1]
    low = np.where(upward[:, None], points, following)  # the same sum for an edge in both directions
    high = np.where(upward[:, None], following, points)
    first = np.clip(np.ceil(low[:, 1]), 0, rows).astype(np.int64)
    last = np.clip(np.ceil(high[:, 1]), 0, rows).astype(np.int64)
    counts = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(points)), counts)
    y = first[edge] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    (x0, y0), (x1, y1) = low[edge].T, high[edge].T
    x = x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
    np.add.at(crossings, (y, np.clip(np.ceil(x), 0, columns).astype(np.int64)), 1)
    return np.cumsum(crossings[:, :columns], axis=1) % 2 == 1


def trace(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Contours along the edges of the pixels of a mask (rows, columns), one for every part that hangs together by edges.

    Their area is that of the pixels. Holes are joined to the contour around them by a keyhole: a channel without width.
    """
    loops = _loops(mask)
    polygons: dict[int, list[Corner]] = {}
    owner: dict[Corner, int] = {}
    holes = []
    for number, loop in enumerate(loops):
        if _turns_inward(loop):
            polygons[number] = loop
            owner |= dict.fromkeys(loop, number)
        else:
            holes.append(loop)
    for hole in sorted(holes, key=min):  # from the left: what lies left of a hole is joined already
        x, y = min(hole)
        start = hole.index((x, y))
        ring = hole[start:] + hole[:start]
        left = next(corner for n in range(x - 1, -1, -1) if (corner := (n, y)) in owner)
        outer = polygons[owner[left]]
        at = outer.index(left)
        outer[at + 1 : at + 1] = [*ring, (x, y), left]
        owner |= dict.fromkeys(ring, owner[left])
    return [np.array(_corners_only(polygon), np.float64) - 0.5 for polygon in polygons.values()]


def _loops(mask: NDArray[np.bool_]) -> list[list[Corner]]:
    """Closed ways along pixel edges with the mask on the right hand; pixels that touch at a corner are apart."""
    wide = np.pad(mask, 1)
    inside = wide[1:-1, 1:-1]
    edges: dict[Corner, list[Corner]] = {}
    for (dy, dx), (ax, ay), (bx, by) in (
        ((0, 1), (0, 0), (1, 0)),  # above
        ((1, 2), (1, 0), (1, 1)),  # to the right
        ((2, 1), (1, 1), (0, 1)),  # below
        ((1, 0), (0, 1), (0, 0)),  # to the left
    ):
        beside = wide[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
        for y, x in np.argwhere(inside & ~beside).tolist():
            edges.setdefault((x + ax, y + ay), []).append((x + bx, y + by))
    loops = []
    while edges:
        start = next(iter(edges))
        loop, here, came = [start], start, (0, 0)
        while True:
            ends = edges[here]
            there = ends[0] if len(ends) == 1 else _rightmost(here, came, ends)
            ends.remove(there)
            if not ends:
                del edges[here]
            came, here = (there[0] - here[0], there[1] - here[1]), there
            if here == start:
                break
            loop.append(here)
        loops.append(loop)
    return loops


def _rightmost(here: Corner, came: Corner, ends: list[Corner]) -> Corner:
    """Where two ways part: the one to the right; at the first step of a way, either."""
    right = (here[0] - came[1], here[1] + came[0])
    return right if right in ends else ends[0]


def _turns_inward(loop: list[Corner]) -> bool:
    """Whether a loop goes around the mask, and not around a hole."""
    (x, y), (bx, by) = np.array(loop).T, np.roll(loop, -1, axis=0).T
    return bool((x * by - bx * y).sum() > 0)


def _corners_only(polygon: list[Corner]) -> list[Corner]:
    """Without the points on straight ways."""
    kept = []
    for number, (x, y) in enumerate(polygon):
        (px, py), (nx, ny) = polygon[number - 1], polygon[(number + 1) % len(polygon)]
        ahead = (x - px, y - py), (nx - x, ny - y)
        straight = ahead[0][0] * ahead[1][1] == ahead[0][1] * ahead[1][0]
        onward = ahead[0][0] * ahead[1][0] + ahead[0][1] * ahead[1][1] > 0
        if not (straight and onward):
            kept.append((x, y))
    return kept
