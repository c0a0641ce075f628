"""A network as data: `Architecture` and the slots that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ulna.recipe.bounds import MOST_CHANNELS_AT_ALL, MOST_LEVELS, Options, Steps, Width
from ulna.recipe.foreign import Foreign
from ulna.recipe.model import Frozen


class Slot(Frozen):
    """Which block fills a slot, and where: all of `levels`, `paths` and `nodes` that are given must fit a node."""

    kind: str
    levels: tuple[int, ...] | None = None  # 0 is full resolution, -1 the deepest
    paths: tuple[str, ...] | None = None  # "encoder", "decoder", "nested", ...
    nodes: tuple[str, ...] | None = None  # "x0_1", ...
    options: Options = Field(default_factory=dict)


def _as_slot(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _as_slots(value: Any) -> Any:
    entries = [value] if isinstance(value, str | Mapping | Slot) else value
    return tuple(_as_slot(entry) for entry in entries) if isinstance(entries, Sequence) else entries


OneSlot = Annotated[Slot, BeforeValidator(_as_slot)]
Slots = Annotated[tuple[Slot, ...], BeforeValidator(_as_slots)]


def _as_strides(value: Any) -> Any:
    """One number a step stands for every axis; anything else is left for the validation to name."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return tuple((step,) if isinstance(step, int) else step for step in value)


MOST_CHANNELS = {2: 512, 3: 320}  # by spatial dimensions: the deepest levels stop widening there, as in nnU-Net


class Architecture(Frozen):
    """A network of the family, as data: a topology, four slots and a head (ARCHITECTURE: composition).

    `channels` is one width per level; left out, the widths are `base_channels` doubled at every level up to
    `max_channels` (left out: `MOST_CHANNELS`), over `levels` levels (left out: `max_levels`,
    or fewer where planning finds the images too small). `strides` is the step from each level to the next, one number
    or one per axis; left out, planning chooses, and without a plan every step is 2. `ends_at` is the head at which a pruned
    network ends: of the network that the other fields describe, it has what that head reads, and pads as that one does.
    `foreign` is a network of others, which takes the place of all other fields.
    """

    topology: str = "unet"
    levels: int | None = Field(default=None, ge=1, le=MOST_LEVELS)
    max_levels: int = Field(default=5, ge=1, le=MOST_LEVELS)
    base_channels: int = Field(default=32, ge=1, le=MOST_CHANNELS_AT_ALL)
    max_channels: int | None = Field(default=None, ge=1, le=MOST_CHANNELS_AT_ALL)
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=MOST_LEVELS)] | None = None
    strides: Annotated[tuple[Steps, ...] | None, BeforeValidator(_as_strides)] = None
    conv: Slots = (Slot(kind="double_conv"),)
    skip: Slots = (Slot(kind="concat"),)
    up: Slots = (Slot(kind="transpose"),)
    down: Slots = (Slot(kind="max"),)
    head: OneSlot = Slot(kind="dense")
    deep_supervision: bool = False
    readout: Literal["final", "mean"] = "final"
    ends_at: str | None = None
    foreign: Foreign | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if (name == "foreign") == (self.foreign is not None)}

    @model_validator(mode="after")
    def _foreign_alone(self) -> Self:
        own = Architecture.model_fields
        changed = [name for name in own if name != "foreign" and getattr(self, name) != own[name].default]
        if self.foreign is not None and changed:
            raise ValueError(
                f"{self.foreign.source} is a network of others, without levels, slots and heads of ulna: {changed[0]} has no "
                "place in it; architecture.foreign.options.NAME=VALUE is a keyword of its constructor"
            )
        return self
