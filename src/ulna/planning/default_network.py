"""The network that is trained where nobody names one: by the dimensions and the size of the images, with the evidence for it.

The studies behind it compare networks in equal time on a CPU, on two data sets; the reasons say so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ulna.data.formats.opening import peek_image
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError, counted
from ulna.planning.plan import Planned
from ulna.recipe import Recipe, set_value, stated

log = logging.getLogger(__name__)

LOOKED_AT = 3  # images, spread over the data set; the check reads all of them afterwards
FLAT = 4  # slices or colours
SMALL_IMAGE = 256 * 256  # pixels: the deepest of the five levels of U-Net is then 16 x 16
# the hippocampus study: 180 volumes to train, widths scaled to 1 M parameters, three seeds of four minutes of a core
VOLUMES = (
    "in equal time on a CPU it was 2.7 points of Dice ahead of unet and 9.4 ahead of unetpp, whose epochs take twice as long "
    "(docs/studies/hippocampus: 28 volumes, 3 seeds of 4 minutes, 1 M parameters each); implicit_unet was another 1.4 ahead, "
    "and not after 38 minutes at the networks' own widths (docs/measured.md, one run each)"
)
# the nuclei study: 498 images of 96 x 96 to train, three seeds of five minutes of a core
IMAGES = (
    "in equal time on a CPU a U-Net was 1.5 to 2.4 points of Dice ahead of two builds of UNet++, and within a point of "
    "nnunet, which takes twice as long an image (docs/studies/nuclei: 34 images of 96 x 96, 3 seeds of 5 minutes, U-Net of "
    "1.8 M parameters); after 12 minutes U-Net and UNet++ could not be told apart (docs/studies/nuclei-one-seed)"
)
LARGE_IMAGES = (
    "its six levels reach further than the five of unet, from which it cannot be told apart by more than a point on small "
    "images in equal time (docs/studies/nuclei: 34 images of 96 x 96, 3 seeds of 5 minutes on a CPU); on large ones they "
    "were not compared"
)
BEYOND = "longer trainings, GPUs and other data were not compared: ulna compare tells it for yours"


class Default(NamedTuple):
    """A network by its name, and why it is taken; no reason where somebody named it."""

    model: str | None
    why: str = ""


def choose_network(
    data: Path | str,
    *,
    model: str | None,
    recipe: Path | str | None,
    set: Sequence[str] | str = (),
    planned: bool = False,
    by_headers: bool = False,
) -> Default:
    """The network of a command: as named, else by the images.

    Args:
        data: a data set; a few of its images are read where nobody names a network.
        model: as the command names it.
        recipe: a file that may name one, or describe it.
        set: changes of single fields; of the dimensions alone matter here.
        planned: whether a plan from a file says it.
        by_headers: no image is read whole whose header says its size.
    """
    fields = stated(recipe)
    if model is not None or planned or {"model", "architecture"} & fields.keys():
        return Default(model)
    planning = fields.get("planning")
    wanted = planning.get("spatial_dims") if isinstance(planning, Mapping) else None
    for change in [set] if isinstance(set, str) else set:
        if change.strip().startswith("planning.spatial_dims"):
            wanted = set_value(Recipe(), change).planning.spatial_dims
    sizes = _sizes(data, by_headers=by_headers)
    if not sizes:  # none can be read: the check says why, after what is wrong with the words of the command
        return Default("unet")
    return by_size(sizes, wanted)


def by_size(sizes: Sequence[tuple[int, ...]], wanted: int | None = None) -> Default:
    """By the sides of some images, in voxels.

    Args:
        sizes: two or three sides of each.
        wanted: 2 where volumes are read slice by slice.

    Example:
        >>> [by_size([size]).model for size in ((96, 96), (96, 96, 1), (1024, 768), (64, 64, 40))]
        ['unet', 'unet', 'nnunet', 'nnunet']
    """
    # volumes of a slice or a few are images, as are pictures whose colours come last
    sides = [tuple(side for side in size if side > FLAT) or size for size in sizes]
    count = counted(len(sizes), "image")
    if wanted != 2 and max(map(len, sides)) == 3:
        return Default("nnunet", f"nnunet, the default for volumes: {VOLUMES}; {BEYOND}")
    pixels = median(math.prod(sorted(size)[-2:]) for size in sides)
    shown = f"{pixels:,.0f} pixels, the median of {count}"
    if pixels > SMALL_IMAGE:
        return Default(
            "nnunet", f"nnunet, the default for images of more than 256 x 256 ({shown}): {LARGE_IMAGES}; {BEYOND}"
        )
    return Default("unet", f"unet, the default for images of up to 256 x 256 ({shown}): {IMAGES}; {BEYOND}")


def with_reason(planned: Planned, why: str) -> Planned:
    """The training with the reason for its network in its plan."""
    if not why:
        return planned
    return replace(planned, plan=planned.plan.replaced(reasons={"model": why, **planned.plan.reasons}))


def _sizes(data: Path | str, *, by_headers: bool) -> list[tuple[int, ...]]:
    """The sides of a few images, of those that can be read."""
    try:
        dataset = Dataset.from_folder(data)
    except UsageError:
        return []
    cases = dataset.labelled or dataset.cases
    every = max(1, -(-len(cases) // LOOKED_AT))
    found = []
    for case in cases[::every]:
        try:
            volume = peek_image(case.images, case.spatial_dims).volume if by_headers else case.read_image()
            found.append(volume.size)
        except UsageError as error:
            log.debug("not read to choose a network: %s", error)
    return found
