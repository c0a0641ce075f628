"""Cases as pages and contact sheets show them: image, reference, prediction and errors, no larger than they are shown."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.evaluation.figures import Picture, comparison
from ulna.evaluation.pair import Pair
from ulna.evaluation.views import view
from ulna.pages.embedding import embed
from ulna.system.files import write_text
from ulna.system.reading import read_json_object

EACH = 3  # cases drawn of those with the lowest Dice, and of those with the highest
SIDE = 256  # pixels along the longer side, about
LARGEST = 36_000  # bytes of a picture in a page: all 24 take less than 1.2 MB


class DrawnCase(NamedTuple):
    """A case, its mean Dice (NaN where none is defined), what is shown of it, and whether that is a slice of a volume."""

    case: str
    dice: float
    pictures: list[Picture]
    sliced: bool = False

    @property
    def title(self) -> str:
        """Above its pictures."""
        return f"{self.case}  {'empty' if math.isnan(self.dice) else f'Dice {self.dice:.3f}'}"


def draw_case(case: str, dice: float, volume: Volume, reference: NDArray[Any], prediction: NDArray[Any]) -> DrawnCase:
    """The pictures of a case; of a volume one slice, in the radiological convention where the image says how it lies.

    Args:
        case: its id.
        dice: its mean Dice.
        volume: the image.
        reference: (*S), or (K, *S) for overlapping classes.
        prediction: the same.
    """
    seen = view(volume, reference, prediction)
    image, true, found = sized(seen.image, smooth=True), *map(sized, seen.maps)
    pictures = [Picture(*one, seen.sides) for one in comparison(image, found, true)]
    return DrawnCase(case, dice, pictures, volume.spatial_dims == 3)


def sized(array: NDArray[Any], *, smooth: bool = False) -> NDArray[Any]:
    """(..., H, W) near `SIDE` by a whole factor; before lines are drawn, so that they are as thin on any image."""
    height, width = array.shape[-2:]
    if max(height, width) > 1.5 * SIDE:
        step = math.ceil(max(height, width) / (1.5 * SIDE))
        source = uniform_filter(array, step, axes=(-2, -1)) if smooth else array
        return source[..., step // 2 :: step, step // 2 :: step]
    factor = max(1, round(SIDE / max(height, width)))
    return array.repeat(factor, -2).repeat(factor, -1)


class Extremes:
    """The cases with the lowest and those with the highest Dice, drawn while their masks are there.

    What is rightly empty comes last: there is nothing to see.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, DrawnCase]] = []  # by Dice, and as they came
        self._seen = 0

    @property
    def cases(self) -> list[DrawnCase]:
        """From the lowest Dice to the highest."""
        return [case for _, _, case in self._kept]

    def offer(self, dice: float, pair: Pair) -> None:
        """Draw a case, if it is among them so far; NaN for one whose Dice is not defined."""
        rank = (_ranked(dice), self._seen)
        self._seen += 1
        place = bisect.bisect(self._kept, rank, key=lambda kept: kept[:2])
        if len(self._kept) == 2 * EACH and place == EACH:
            return  # as many are lower, and as many higher
        self._kept.insert(place, (*rank, draw_case(pair.case, dice, pair.volume, pair.reference, pair.prediction)))
        if len(self._kept) > 2 * EACH:
            del self._kept[EACH]


def extremes_of(dice: Mapping[str, float]) -> list[str]:
    """Those of many cases that are drawn, from the lowest Dice to the highest."""
    order = sorted(dice, key=lambda case: _ranked(dice[case]))
    return order if len(order) <= 2 * EACH else [*order[:EACH], *order[-EACH:]]


def _ranked(dice: float) -> float:
    return float(np.nan_to_num(dice, nan=1.0))


class Shown(NamedTuple):
    """A picture in a page.

    Args:
        caption: below it.
        address: the picture itself.
        ratio: how wide it is as a multiple of its height.
        sides: letters at its left, right, top and bottom.
    """

    caption: str
    address: str
    ratio: float
    sides: tuple[str, str, str, str] | None


class ShownCase(NamedTuple):
    """A case as it stands on a page."""

    case: str
    dice: float | None
    pictures: list[Shown]
    sliced: bool = False

    @classmethod
    def of(cls, drawn: DrawnCase, largest: int = LARGEST) -> ShownCase:
        """With its pictures in itself, of so many bytes at most."""
        dice = None if math.isnan(drawn.dice) else drawn.dice
        return cls(drawn.case, dice, [_shown(picture, largest) for picture in drawn.pictures], drawn.sliced)


def pictures_of_files(case: str, dice: float, image: Path, reference: Path, prediction: Path) -> ShownCase:
    """A case of three PNG files: a picture in grey or colour, and two masks of class indices."""
    pixels, true, found = map(_pixels, (image, reference, prediction))
    channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    return ShownCase.of(draw_case(case, dice, Volume(channels, (1.0, 1.0)), true, found))


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _shown(picture: Picture, largest: int) -> Shown:
    height, width = picture.values.shape[:2]
    sides = picture.sides
    ratio = width / (height * (1.0 if sides is None else sides.aspect))
    letters = None if sides is None else (sides.left, sides.right, sides.top, sides.bottom)
    return Shown(picture.caption, embed(picture.values, exact=False, largest=largest), round(ratio, 4), letters)


def keep_shown(path: Path, cases: Sequence[ShownCase]) -> None:
    """Write down what a page shows of cases, so that the page of a cross-validation can show them too."""
    write_text(path, json.dumps({"cases": cases}))


def read_shown(path: Path) -> list[ShownCase]:
    """Read it again; nothing where there is none, as in a run of an earlier version, or it is damaged."""
    try:
        found = read_json_object(path)["cases"] if path.exists() else []
        return [
            ShownCase(str(case), None if dice is None else float(dice), [_read(*one) for one in pictures], bool(sliced))
            for case, dice, pictures, sliced in found
        ]
    except (UsageError, KeyError, TypeError, ValueError):
        return []


def _read(caption: Any, address: Any, ratio: Any, sides: Any) -> Shown:
    if not str(address).startswith("data:image/"):
        raise ValueError("is no picture")
    left, right, top, bottom = ("",) * 4 if sides is None else map(str, sides)
    return Shown(str(caption), str(address), float(ratio), None if sides is None else (left, right, top, bottom))


def extremes_shown(cases: Sequence[ShownCase]) -> list[ShownCase]:
    """Of the cases that several pages show, those with the lowest and the highest Dice, in this order."""
    order = sorted((case for case in cases if case.dice is not None), key=lambda case: (case.dice, case.case))
    return order if len(order) <= 2 * EACH else [*order[:EACH], *order[-EACH:]]
