"""Bounds that no network and no image comes near: a recipe or plan from a stranger must not ask for more."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from ulna.errors import brief, printable
from ulna.recipe.former import renamed_options

MOST_LEVELS = 64
MOST_CHANNELS_AT_ALL = 1 << 16
LONGEST_AXIS = 1 << 20
LARGEST_OPTION = 1 << 20
MOST_LAYERS = 64  # of one block
MOST_NEIGHBOURS = 64  # slices on each side of one
_LAYER_COUNTS = ("convs", "layers", "sdn_layers", "depth")  # options that say how many layers a block has


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    options = renamed_options(options)
    for name, value in options.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        most = MOST_LAYERS if name in _LAYER_COUNTS else LARGEST_OPTION
        if len(values) > MOST_LAYERS:
            raise ValueError(f"{printable(name)} has {len(values):,} entries; at most {MOST_LAYERS} are taken")
        for one in values:
            if isinstance(one, int | float) and not abs(one) <= most:  # NaN is not
                raise ValueError(f"{printable(name)} is {brief(one)}; numbers of at most {most:,} are taken")
    return options


Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
Width = Annotated[int, Field(ge=1, le=MOST_CHANNELS_AT_ALL)]
Axis = Annotated[int, Field(ge=0, le=2)]
Step = Annotated[int, Field(ge=1, le=1 << 15)]
Steps = Annotated[tuple[Step, ...], Field(min_length=1, max_length=3)]
Voxels = Annotated[int, Field(ge=1, le=LONGEST_AXIS)]  # along an axis
Length = Annotated[float, Field(gt=1e-6, lt=1e6)]  # of one step of a grid, in mm or px
