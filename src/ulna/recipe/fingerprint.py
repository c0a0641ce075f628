"""What the training cases are: `Fingerprint`, which every plan holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from ulna.errors import counted
from ulna.recipe.bounds import MOST_CHANNELS_AT_ALL, Axis
from ulna.recipe.model import Frozen

Number = StrictInt | StrictFloat  # as it was written: 32 stays 32
Positive = Annotated[Number, Field(gt=0, lt=1e12)]

# fields of earlier plans that nothing reads any more
RETIRED = ("foreground_intensity", "left_right_axis", "lowest")


class Extent(Frozen):
    """The smallest, the median and the largest value along every axis."""

    min: tuple[Positive, ...]
    median: tuple[Positive, ...]
    max: tuple[Positive, ...]


class Range(Frozen):
    """The smallest and the largest value of a channel."""

    min: Number
    max: Number


class Spread(Frozen):
    """The distribution of a channel's values: the smallest and the largest that training cases had of each number.

    width: log10 of the distance from the 0.5 to the 99.5 percentile; low: the 0.5 percentile over that distance; middle:
    where the median lies between both.
    """

    width: Range
    low: Range
    middle: Range


class Foreground(Frozen):
    """The values of a channel within all structures: the 0.5 and 99.5 percentiles, mean and deviation between them."""

    low: Number
    high: Number
    mean: Number
    std: Annotated[Number, Field(ge=0)]


class Fingerprint(Frozen):
    """What the training cases are; axes are those that the network sees.

    Fields with a default are absent from some plans of format 1.
    """

    cases: int = Field(ge=1)
    digest: str | None = None  # of the images of all cases of the data set
    spatial_dims: Literal[2, 3]
    channels: int = Field(ge=1, le=MOST_CHANNELS_AT_ALL)
    channel_names: tuple[str, ...]
    dtypes: tuple[str, ...]
    size: Extent  # pixels or voxels
    spacing: Extent  # in `unit`
    orientation: Literal["RAS"] | None = None  # that of the network's axes; None: those of the files
    orientations: dict[str, int] = Field(default_factory=dict)  # how the files store their axes -> cases
    worlds: tuple[Axis, ...] | None = None  # the patient's axis (0 left-right, 1 back-front, 2 foot-head) of every axis
    # the axis that goes along each of the patient's; None: oblique, or not in every case; -1: slices lie askew to it
    world_axes: tuple[Annotated[int, Field(ge=-1, le=2)] | None, ...] | None = None
    unit: Literal["mm", "px"]
    intensity: tuple[Range, ...] = ()  # one a channel
    foreground: tuple[Foreground, ...] = ()  # one a channel; none where no training case has a structure
    classes: tuple[str, ...]
    # voxels of the background and of every class, where it is known; absent from earlier plans
    voxels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    # what a case is compared with before it is predicted; absent from earlier plans
    extent: Extent | None = None  # size times spacing
    values: tuple[Spread, ...] = ()  # one a channel
    tilt: float | None = Field(
        default=None, ge=0, le=90
    )  # degrees between the axes and those of `orientation`, at most
    modalities: dict[str, int] = Field(default_factory=dict)  # of DICOM -> cases
    body_parts: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _without_retired(cls, values: Any) -> Any:
        return {n: v for n, v in values.items() if n not in RETIRED} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        dims = self.spatial_dims
        extents = [("size", self.size), ("spacing", self.spacing)]
        extents += [] if self.extent is None else [("extent", self.extent)]
        ends = {
            f"{group}.{end}": len(values)
            for group, extent in extents
            for end, values in (("min", extent.min), ("median", extent.median), ("max", extent.max))
        }
        wrong = [
            f"{name} has {counted(count, 'entry')}, the images have {dims} axes"
            for name, count in ends.items()
            if count != dims
        ]
        if self.worlds is not None and len(self.worlds) < dims:
            wrong.append(f"worlds has {counted(len(self.worlds), 'entry')}, the images have {dims} axes")
        for name, per_channel in (
            ("intensity", self.intensity),
            ("foreground", self.foreground),
            ("values", self.values),
        ):
            if per_channel and len(per_channel) != self.channels:
                wrong.append(
                    f"{name} has {counted(len(per_channel), 'entry')}, the images have {counted(self.channels, 'channel')}"
                )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
