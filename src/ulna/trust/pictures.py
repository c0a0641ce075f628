"""What the page of a prediction shows of one case: pictures, and the outlines of its mask to lay over them.

A 2D image is shown whole; of a volume the slice with the largest area of each structure, and on request one along each axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ulna.data.volume import Volume
from ulna.evaluation.colours import to_rgb
from ulna.evaluation.figures import outlines_alone
from ulna.evaluation.metrics import mask_of
from ulna.evaluation.views import Sides, View, view
from ulna.pages.embedding import embed, embed_lines
from ulna.recipe import Labels
from ulna.trust.windows import Window, ct_window

PIXELS = 480  # of the longer side, whatever the image has
LINE = 2  # pixels: it is to be seen on a thumbnail
EXACT = 160 * 160  # pixels of an image that is kept to the bit


class Shot(NamedTuple):
    """One picture of a case.

    Args:
        caption: what it shows.
        image: data address of the picture.
        lines: data address of the outlines, transparent between them.
        width: pixels of the outlines, to which the picture is stretched.
        height: the same.
        sides: where its sides lie in the body; None without an orientation.
    """

    caption: str
    image: str
    lines: str
    width: int
    height: int
    sides: Sides | None


def draw_case(
    volume: Volume, mask: NDArray[Any], labels: Labels, structures: Sequence[str], *, planes: bool
) -> list[Shot]:
    """The pictures of one case; of a CT in the window for what its mask covers, which the first caption states.

    Args:
        volume: the image.
        mask: class indices, (*S); (K, *S) of 0 and 1 for overlapping classes.
        labels: the classes.
        structures: of a volume, those whose largest slice is shown, in this order.
        planes: of a volume, also a slice along each axis.
    """
    window = ct_window(volume, mask)
    stated = "" if window is None else f"{window.low:g} to {window.high:g} HU"
    if volume.spatial_dims == 2:
        return [_shot(stated, view(volume, mask), window)]
    shots: dict[str, Shot] = {}  # by their picture: several structures may be largest in one slice
    for name, one in _largest(volume, mask, labels, structures):
        shot = _shot(name, one, window)
        if shot.image in shots:
            shot = shot._replace(caption=f"{shots[shot.image].caption}, {name}")
        shots[shot.image] = shot
    told = [shot._replace(caption=f"largest area of {shot.caption}{_plane(shot)}") for shot in shots.values()]
    if not told:
        told = [
            shot._replace(caption=f"middle slice{_plane(shot)}") for shot in [_shot("", view(volume, mask), window)]
        ]
    if planes:
        seen = {shot.image for shot in told}
        across = [_shot(f"across axis {axis + 1}", view(volume, mask, across=axis), window) for axis in range(3)]
        told += [shot._replace(caption=_along(shot)) for shot in across if shot.image not in seen]
    if stated:
        told[0] = told[0]._replace(caption=f"{told[0].caption}; {stated}")
    return told


def _largest(
    volume: Volume, mask: NDArray[Any], labels: Labels, structures: Sequence[str]
) -> Iterator[tuple[str, View]]:
    """The slice with the largest area of each structure that is there; the map of one is held at a time."""
    for name in structures:
        where = mask_of(mask, labels.foreground.index(name) + 1, multilabel=labels.multilabel)
        if where.any():
            found = view(volume, where, mask)
            yield name, found._replace(maps=found.maps[1:])


def _plane(shot: Shot) -> str:
    return "" if shot.sides is None else f", {shot.sides.plane}"


def _along(shot: Shot) -> str:
    return shot.caption if shot.sides is None else shot.sides.plane


def _shot(caption: str, shown: View, window: Window | None) -> Shot:
    """Outlines of `PIXELS` in size, as high and wide as it is in the body, and the image, which is stretched to them."""
    height, width = shown.image.shape[-2:]
    tall = height * (1.0 if shown.sides is None else shown.sides.aspect)
    scale = PIXELS / max(tall, width)
    size = max(1, round(tall * scale)), max(1, round(width * scale))
    image = to_rgb(shown.image if window is None else np.clip(shown.image, *window))
    smaller = min(height, size[0]), min(width, size[1])
    if smaller != (height, width):
        with Image.fromarray(image) as picture:
            image = np.asarray(picture.resize(smaller[::-1], Image.Resampling.BILINEAR))
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip((height, width), size, strict=True)
    )
    labels = shown.maps[0][..., rows[:, None], columns]  # before lines are drawn, so that they are as thin on any image
    lines = outlines_alone(labels, LINE)
    return Shot(
        caption, embed(image, exact=smaller[0] * smaller[1] <= EXACT), embed_lines(lines), size[1], size[0], shown.sides
    )
