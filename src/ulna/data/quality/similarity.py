"""Which images are nearly the same: stored again as JPEG, a little brighter, blurred, smaller, or the next frame of a film.

Every image is drawn on a small grid (32 x 32 or 12 x 12 x 12) and what is left beside its local mean is compared by
correlation. What all images of a set share - the round field of an eye, the black corner of an endoscope - is taken away
first, or the images of one apparatus would all look alike.

Measured on eight public data sets: different images correlate at 0.87 at most, copies that were saved as JPEG of quality
50, changed in brightness, or given noise of a tenth of their spread at 0.93 at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from ulna.data.pipeline.orientation import Turn
from ulna.system.mapped import let_go_of_part

_CELLS = {2: 32, 3: 12}
_SAMPLES = {2: 256, 3: 48}  # along an axis, at most twice as many are looked at
_WINDOW = 5
_ALIKE = 0.92
_ALIKE_ALONE = 0.99  # whatever the set has in common
_COLOURS = 3
MOST_IMAGES = 20_000  # every pair is compared
_BLOCK = 1024

Thumbnail = NDArray[np.float32]


def thumbnail(array: NDArray[Any]) -> Thumbnail | None:
    """What an image looks like on a small grid, of length 1; None where it has no detail: (C, *S) -> (n,)."""
    dims = array.ndim - 1
    steps = tuple(slice(None, None, max(1, n // _SAMPLES[dims])) for n in array.shape[1:])
    small = array[(slice(_COLOURS), *steps)].sum(axis=0, dtype=np.float32)
    if not np.isfinite(small).all():
        return None
    for axis in range(dims):
        small = _means(small, axis, _CELLS[dims])
    detail = small - uniform_filter(small, _WINDOW, mode="nearest")
    detail -= detail.mean()
    length = float(np.linalg.norm(detail))
    if length <= 1e-5 * float(np.linalg.norm(small)):
        return None
    return (detail / length).astype(np.float32).ravel()


def thinned(array: NDArray[Any], turn: Turn) -> NDArray[Any]:
    """Of an image that is mapped from a file, (C, *S), what `thumbnail` looks at of it, turned: some rows at a time.

    Shape:
        (C, *S) -> (C, *s), turned
    """
    size, dims = array.shape[1:], array.ndim - 1
    flips = turn.stored(turn.flipped) if turn.axes else (False,) * dims
    places = [_places(n, dims, flip=flip) for n, flip in zip(size, flips, strict=True)]
    channels = []
    for channel in array[:_COLOURS]:
        rows = []
        for place in places[0]:
            row = channel[int(place)]
            rows.append(np.array(row[np.ix_(*places[1:])]))
            let_go_of_part(row)
        channels.append(np.stack(rows))
    return turn.forward(np.stack(channels))


def _places(n: int, dims: int, *, flip: bool) -> NDArray[np.int64]:
    """Which voxels of an axis are looked at, ascending."""
    found = np.arange(0, n, max(1, n // _SAMPLES[dims]))
    return (n - 1 - found)[::-1] if flip else found


def _means(array: NDArray[np.float32], axis: int, cells: int) -> NDArray[np.float32]:
    size = array.shape[axis]
    edges = np.arange(cells) * size // cells
    if size < cells:
        return np.take(array, edges, axis=axis)
    counts = np.diff(edges, append=size).astype(np.float32)
    shape = [-1 if number == axis else 1 for number in range(array.ndim)]
    return np.add.reduceat(array, edges, axis=axis) / counts.reshape(shape)


def alike(looks: Mapping[str, Thumbnail]) -> list[tuple[str, str]]:
    """All pairs of names whose images are nearly the same; none beyond 20 000 images.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.random((2, 1, 64, 64))
        >>> alike({"a": thumbnail(a), "b": thumbnail(b), "c": thumbnail(a * 0.9 + 0.05)})
        [('a', 'c')]
    """
    found: list[tuple[str, str]] = []
    for length in sorted({one.size for one in looks.values()}):  # 2D with 2D, 3D with 3D
        names = [name for name, one in looks.items() if one.size == length]
        if 2 <= len(names) <= MOST_IMAGES:
            found += _pairs(names, np.stack([looks[name] for name in names]))
    return found


def _pairs(names: list[str], looks: NDArray[np.float32]) -> list[tuple[str, str]]:
    total = looks.sum(axis=0)
    found = []
    for start in range(0, len(names), _BLOCK):
        close = looks[start : start + _BLOCK] @ looks[start:].T >= _ALIKE
        for i, j in np.argwhere(np.triu(close, 1)) + start:
            if _still_alike(looks[i], looks[j], total, len(names) - 2):
                found.append((names[i], names[j]))
    return found


def _still_alike(a: Thumbnail, b: Thumbnail, total: Thumbnail, others: int) -> bool:
    """Whether two images stay alike without what the other images have in common."""
    if not others or float(a @ b) >= _ALIKE_ALONE:
        return float(a @ b) >= _ALIKE_ALONE
    common = (total - a - b) / others
    own_a, own_b = a - common, b - common
    return float(own_a @ own_b) >= _ALIKE * float(np.linalg.norm(own_a) * np.linalg.norm(own_b))
