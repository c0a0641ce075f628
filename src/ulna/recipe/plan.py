"""What the data fix: `Plan` with the classes, the normalisation and the grid; and `Split`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ulna.errors import counted
from ulna.recipe.bounds import MOST_CHANNELS_AT_ALL, MOST_LEVELS, Axis, Length, Steps, Voxels
from ulna.recipe.choices import Recipe
from ulna.recipe.fingerprint import Fingerprint
from ulna.recipe.labels import Labels, Value
from ulna.recipe.model import Frozen
from ulna.recipe.slices import Slices


class Normalization(Frozen):
    """What is done to the values of one channel before the network sees them.

    zscore: minus the image's own mean, over its own standard deviation; zscore_joint: those of all its channels together. ct:
    clip to [low, high], then minus `mean`, over `std` (of the training set's foreground). rescale: (value - low) /
    (high - low). none: as it is. Where a plan crops, an image's own mean and deviation are those of what it keeps.
    """

    kind: Literal["zscore", "zscore_joint", "ct", "rescale", "none"]
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = Field(default=1.0, ge=0)
    clip: tuple[float | None, float | None] | None = None  # what values are clipped to before that; None: no bound
    cap: float | None = Field(default=None, gt=0, le=100)  # the percentile of the training set that is the upper bound

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.clip is not None and None not in self.clip and not self.clip[0] <= self.clip[1]:  # type: ignore[operator]
            raise ValueError(f"clip is {list(self.clip)}, and its first value lies above its second")
        if self.kind in ("ct", "rescale") and self.low > self.high:
            raise ValueError(f"low {self.low:g} lies above high {self.high:g}")
        return self


class Whitening(Frozen):
    """What decorrelates the channels of a normalised image: every voxel x becomes matrix @ (x - mean)."""

    mean: tuple[float, ...]  # (C)
    matrix: tuple[tuple[float, ...], ...]  # (C, C)


PLAN_FORMAT = 2  # 1: axes as stored, no spacing where all images share one; see `ulna.data.pipeline.format_1`


class Plan(Frozen):
    """What the data fixed, each with its reason. Stored as `plan.yaml`.

    Axes (of `spacing`, `patch`, `strides`, `mirror_axes`, `turn_axes`) are those that the network sees: the closest canonical
    ones with an `orientation`, else those of the files. With `slices` the network is 2D and the images are volumes:
    `spacing` and `kept_axes` are of the volumes, `patch`, `strides`, `mirror_axes` and `turn_axes` of the plane of a slice.
    """

    format: int = Field(default=1, ge=1, le=PLAN_FORMAT)  # a plan without it was made by an earlier ulna
    spatial_dims: Literal[2, 3]  # of the network
    in_channels: int = Field(ge=1, le=MOST_CHANNELS_AT_ALL)  # of an image
    channel_names: tuple[str, ...]
    colour: bool = False  # whether the images are pictures of red, green and blue
    labels: Labels
    mask_values: Annotated[tuple[Value, ...], Field(max_length=MOST_CHANNELS_AT_ALL + 1)] | None = (
        None  # of the background and every class in mask files of 2D PNG, TIFF and BMP; None: class indices
    )
    orientation: Literal["RAS"] | None = None  # images are turned to it; None: the axes stay as the files store them
    spacing: tuple[Length, ...] | None  # of the network's grid, in `unit`; None (format 1 only): every image's own
    unit: Literal["mm", "px"]
    kept_axes: tuple[Axis, ...] = ()  # along these every image keeps its own spacing, and `spacing` holds the median
    size: tuple[Voxels | None, ...] | None = None  # voxels that every image is resampled to; `spacing` then follows
    crop: tuple[Voxels | None, ...] | None = None  # voxels about the middle that are kept, or padded to
    slices: Slices | None = (
        None  # of volumes, for a 2D network; `spacing`, `kept_axes`, `size`, `crop` are of the volumes
    )
    normalization: tuple[Normalization, ...]  # one per channel
    whitening: Whitening | None = None  # after the normalisation
    patch: tuple[Voxels, ...]
    batch: int = Field(ge=1, le=1 << 16)
    strides: Annotated[tuple[Steps, ...], Field(max_length=MOST_LEVELS - 1)]
    whole_image_limit: int = Field(ge=0)  # pixels or voxels up to which an image is predicted in one piece
    mirror_axes: tuple[Axis, ...]  # spatial axes along which flips are safe
    turn_axes: tuple[Axis, Axis] | None  # the two spatial axes that quarter turns may exchange
    reasons: dict[str, str]
    fingerprint: Fingerprint
    recipe: Recipe | None = None  # what it was made for, in a file of `ulna plan`; a run has its own beside it

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        absent = {
            name for name in ("recipe", "slices", "kept_axes", "mask_values", "colour") if not getattr(self, name)
        }
        return {name: value for name, value in values.items() if name not in absent}

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        """Every list has one entry an axis or a channel: what does not would fail far from here, or count wrong axes."""
        dims, channels = self.spatial_dims, self.in_channels
        lengths: dict[str, tuple[int, int, str]] = {
            "patch": (len(self.patch), dims, "axes"),
            "channel_names": (len(self.channel_names), channels, "channels"),
            "normalization": (len(self.normalization), channels, "channels"),
        }
        if self.mask_values is not None:
            wanted = 2 if self.labels.stacked else len(self.labels.foreground) + 1
            lengths["mask_values"] = (len(self.mask_values), wanted, "values in mask files")
        for name in ("spacing", "size", "crop"):
            if (given := getattr(self, name)) is not None:
                lengths[name] = (len(given), self.image_dims, "axes")
        if self.whitening is not None:
            lengths["whitening.mean"] = (len(self.whitening.mean), channels, "channels")
            lengths["whitening.matrix"] = (len(self.whitening.matrix), channels, "channels")
            row = next((len(row) for row in self.whitening.matrix if len(row) != channels), channels)
            lengths["a row of whitening.matrix"] = (row, channels, "channels")
        wrong = [
            f"{name} has {counted(has, 'entry')}, the images have {want} {what}"
            for name, (has, want, what) in lengths.items()
            if has != want
        ]
        wrong += [
            f"strides[{number}] has {counted(len(step), 'entry')}, the images have {dims} axes"
            for number, step in enumerate(self.strides)
            if len(step) != dims
        ]
        of_patch = {"mirror_axes": self.mirror_axes, "turn_axes": self.turn_axes or ()}
        for name, axes in {**of_patch, "kept_axes": self.kept_axes}.items():
            most = dims if name in of_patch else self.image_dims
            if len(set(axes)) < len(axes) or any(axis >= most for axis in axes):
                wrong.append(f"{name} is {list(axes)}; it holds axes below {most}, each once")
        if self.slices is not None and (dims, self.format) != (2, PLAN_FORMAT):
            wrong.append(
                f"slices are read by 2D networks of format {PLAN_FORMAT}, and this plan is {dims}D of {self.format}"
            )
        if self.spacing is None and self.format > 1:
            wrong.append("spacing is missing: a plan always holds that of its training")
        if self.format == 1 and (self.size or self.crop or self.kept_axes):
            wrong.append("size, crop and kept_axes are of format 2, and the plan is of format 1")
        if not self.labels.foreground:
            wrong.append("labels name the background only")
        if self.fingerprint.spatial_dims != self.image_dims:
            wrong.append(
                f"fingerprint is of {self.fingerprint.spatial_dims}D images, the plan of {self.image_dims}D ones"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def levels(self) -> int:
        """Resolutions of the network."""
        return len(self.strides) + 1

    @property
    def image_dims(self) -> int:
        """Spatial dimensions of the images: 3 where a 2D network reads their slices."""
        return self.spatial_dims if self.slices is None else 3

    @property
    def sized_axes(self) -> tuple[int, ...]:
        """The axes along which every image is resampled to one number of voxels."""
        return tuple(axis for axis, voxels in enumerate(self.size or ()) if voxels is not None)

    @property
    def needs_spacing(self) -> bool:
        """Whether images are resampled by their spacing along any axis."""
        return bool(set(range(self.image_dims)) - {*self.sized_axes, *self.kept_axes})

    @property
    def inputs(self) -> int:
        """Channels that the network reads: those of an image, times the slices that it sees at once."""
        return self.in_channels * (1 if self.slices is None else self.slices.thickness)

    @property
    def patch_axes(self) -> tuple[int, ...]:
        """The axes of an image that a patch goes along: all of them, or those of the plane of a slice."""
        return tuple(range(self.spatial_dims)) if self.slices is None else self.slices.plane

    @property
    def patch_spacing(self) -> tuple[float, ...]:
        """Of the network's grid along the axes of a patch."""
        spacing = self.spacing or self.fingerprint.spacing.median
        return tuple(spacing[axis] for axis in self.patch_axes)

    def takes_whole(self, grid: Sequence[int], *, sparse: bool) -> bool:
        """Whether an image on this plan's grid is predicted in one piece, not by windows of the patch.

        Args:
            grid: its size along the axes of a patch.
            sparse: whether the head reads points: it goes by the place in a patch, so it never sees more than one.
        """
        return math.prod(grid) <= self.whole_image_limit and not sparse

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")


class Split(Frozen):
    """Which cases train, which choose the epoch, which are kept for the end. By case id."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _no_case_twice(self) -> Self:
        sets = {"train": set(self.train), "val": set(self.val), "test": set(self.test)}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            both = sorted(sets[a] & sets[b])
            if both:
                raise ValueError(f"{counted(len(both), 'case')} both in {a} and in {b}, for example {both[0]}")
        return self
