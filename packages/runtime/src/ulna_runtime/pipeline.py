"""What pipeline.json says: how an image becomes a mask. Every field is checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ulna_runtime.calibration import Calibration, NewerError, read_calibration
from ulna_runtime.errors import UsageError
from ulna_runtime.values import among, counts, ints, maybe, number, numbers, one, several

KINDS = ("zscore", "zscore_joint", "ct", "rescale", "none")
MOST_AXIS = 1 << 20


@dataclass(frozen=True)
class Labels:
    """The classes: `order` is the value written for every overlapping structure, the later over the earlier."""

    names: tuple[str, ...]
    multilabel: bool
    order: tuple[int, ...] | None

    @property
    def foreground(self) -> tuple[str, ...]:
        """The structures, in the order of their values from 1."""
        return self.names if self.multilabel else self.names[1:]

    @property
    def outputs(self) -> int:
        """Maps of the network."""
        return len(self.names) if self.multilabel or len(self.names) > 2 else 1


@dataclass(frozen=True)
class Normalization:
    """What is done to the values of one channel."""

    kind: str
    low: float
    high: float
    mean: float
    std: float
    clip: tuple[float | None, float | None] | None


@dataclass(frozen=True)
class Whitening:
    """Every voxel x becomes matrix @ (x - mean)."""

    mean: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Slices:
    """The slices of volumes that a 2D network reads, across `axis`, each with its neighbours."""

    axis: int
    neighbours: int

    @property
    def plane(self) -> tuple[int, ...]:
        """The axes that a slice spans."""
        return tuple(axis for axis in range(3) if axis != self.axis)


@dataclass(frozen=True)
class Plan:
    """What the data of the training fixed; axes are those that the network sees."""

    spatial_dims: int
    in_channels: int
    channel_names: tuple[str, ...]
    labels: Labels
    orientation: str | None
    spacing: tuple[float, ...]
    unit: str
    kept_axes: tuple[int, ...]
    size: tuple[int | None, ...] | None
    crop: tuple[int | None, ...] | None
    slices: Slices | None
    normalization: tuple[Normalization, ...]
    whitening: Whitening | None
    patch: tuple[int, ...]
    whole_image_limit: int
    mirror_axes: tuple[int, ...]
    spacing_min: tuple[float, ...]
    spacing_max: tuple[float, ...]

    @property
    def image_dims(self) -> int:
        """Spatial dimensions of the images."""
        return self.spatial_dims if self.slices is None else 3

    @property
    def inputs(self) -> int:
        """Channels that the network reads."""
        return self.in_channels * (1 if self.slices is None else 2 * self.slices.neighbours + 1)

    @property
    def patch_axes(self) -> tuple[int, ...]:
        """The axes of an image that a patch goes along."""
        return tuple(range(self.spatial_dims)) if self.slices is None else self.slices.plane

    @property
    def needs_spacing(self) -> bool:
        """Whether images are resampled by their spacing along any axis."""
        sized = {axis for axis, voxels in enumerate(self.size or ()) if voxels is not None}
        return bool(set(range(self.image_dims)) - sized - set(self.kept_axes))


@dataclass(frozen=True)
class Settings:
    """How whole images are predicted."""

    overlap: float
    threshold: float
    tta: bool
    mesh_step: int
    refine: str
    smooth: bool
    post_processing: bool


@dataclass(frozen=True)
class Graphs:
    """The graphs of one network.

    Args:
        kind: "dense": one graph, image -> logits; "points": an encoder, image -> maps, and a decoder, vectors -> logits.
        files: the graph, or encoder and decoder.
        divisor: sizes are padded to a multiple of it.
        fixed: the one size that the graph takes; None: every multiple of `divisor`.
        frequencies: of the encoding of a place.
        gather: how a map is read at a point: "nearest" or "linear".
    """

    kind: str
    files: tuple[str, ...]
    divisor: tuple[int, ...]
    fixed: tuple[int, ...] | None
    frequencies: int
    gather: str


@dataclass(frozen=True)
class Member:
    """One network with what belongs to it."""

    plan: Plan
    settings: Settings
    graphs: Graphs
    calibration: Calibration | None = None


def read_pipeline(values: Mapping[str, Any], name: object) -> tuple[Member, ...]:
    """The networks of an exported file.

    Raises:
        UsageError: if what it says cannot be.
    """
    try:
        members = tuple(_member(member) for member in values["members"])
        if not members:
            raise ValueError("members")
        for member in members:
            _check(member)
        first = members[0].plan
        for member in members[1:]:
            if (member.plan.labels, member.plan.image_dims) != (first.labels, first.image_dims):
                raise ValueError("members")
    except NewerError as error:
        raise UsageError(f"{name}: {error}; install a newer ulna-runtime, or export the run again") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UsageError(
            f"{name}: its pipeline.json cannot be right ({str(error)[:80]}); export the run again"
        ) from None
    return members


def _member(values: Mapping[str, Any]) -> Member:
    plan, inference, graphs = values["plan"], values["inference"], values["graphs"]
    if plan["format"] != 2:
        raise ValueError("plan.format")
    told, slices, whitening = plan["fingerprint"]["spacing"], plan.get("slices"), plan.get("whitening")
    labels = plan["labels"]
    return Member(
        Plan(
            spatial_dims=one(plan["spatial_dims"], int),
            in_channels=one(plan["in_channels"], int),
            channel_names=several(plan["channel_names"], str),
            labels=Labels(
                several(labels["names"], str), one(labels["multilabel"], bool), maybe(labels.get("order"), ints)
            ),
            orientation=maybe(plan["orientation"], lambda v: among(v, ("RAS",))),
            spacing=numbers(plan["spacing"]),
            unit=among(plan["unit"], ("mm", "px")),
            kept_axes=ints(plan.get("kept_axes") or []),
            size=maybe(plan.get("size"), counts),
            crop=maybe(plan.get("crop"), counts),
            slices=maybe(slices, lambda v: Slices(one(v["axis"], int), one(v["neighbours"], int))),
            normalization=tuple(map(_normalization, plan["normalization"])),
            whitening=maybe(whitening, lambda v: Whitening(numbers(v["mean"]), tuple(map(numbers, v["matrix"])))),
            patch=ints(plan["patch"]),
            whole_image_limit=one(plan["whole_image_limit"], int),
            mirror_axes=ints(plan["mirror_axes"]),
            spacing_min=numbers(told["min"]),
            spacing_max=numbers(told["max"]),
        ),
        Settings(
            overlap=number(inference["overlap"]),
            threshold=number(inference["threshold"]),
            tta=one(inference["tta"], bool),
            mesh_step=one(inference["mesh_step"], int),
            refine=among(inference["refine"], ("halving", "once")),
            smooth=one(inference["smooth"], bool),
            post_processing=one(inference.get("post_processing", True), bool),  # earlier files have nothing to apply
        ),
        Graphs(
            kind=among(graphs["kind"], ("dense", "points")),
            files=several(graphs["files"], str),
            divisor=ints(graphs["divisor"]),
            fixed=maybe(graphs.get("fixed"), ints),
            frequencies=one(graphs.get("frequencies", 0), int),
            gather=among(graphs.get("gather", "nearest"), ("nearest", "linear")),
        ),
        maybe(values.get("calibration"), read_calibration),
    )


def _normalization(values: Mapping[str, Any]) -> Normalization:
    low, high, mean, std = (number(values[name]) for name in ("low", "high", "mean", "std"))
    clip = maybe(values.get("clip"), lambda v: tuple(maybe(bound, number) for bound in v))
    if clip is not None and len(clip) != 2:
        raise ValueError("normalization.clip")
    return Normalization(among(values["kind"], KINDS), low, high, mean, std, clip)  # type: ignore[arg-type]


def _check(member: Member) -> None:
    """Whether every list has one entry an axis or a channel, and every number its range."""
    plan, settings, graphs = member.plan, member.settings, member.graphs
    dims, channels = plan.image_dims, plan.in_channels
    slices, whitening = plan.slices, plan.whitening
    cleaned = () if member.calibration is None else member.calibration.rules
    rules = {
        "spatial_dims": plan.spatial_dims in (2, 3) and (slices is None or plan.spatial_dims == 2),
        "slices": slices is None or (0 <= slices.axis < 3 and 0 <= slices.neighbours <= 64),
        "in_channels": 1 <= channels <= 4096 and len(plan.normalization) == len(plan.channel_names) == channels,
        "labels": plan.labels.outputs >= 1
        and (plan.labels.multilabel or len(plan.labels.names) > 1)
        and (plan.labels.order is None or len(plan.labels.order) == len(plan.labels.names)),
        "calibration": set(cleaned) <= set(plan.labels.foreground),
        "spacing": len(plan.spacing) == len(plan.spacing_min) == len(plan.spacing_max) == dims
        and all(s > 0 for s in (*plan.spacing, *plan.spacing_min, *plan.spacing_max)),
        "size": all(
            given is None or (len(given) == dims and all(n is None or 1 <= n <= MOST_AXIS for n in given))
            for given in (plan.size, plan.crop)
        ),
        "axes": all(0 <= axis < dims for axis in plan.kept_axes)
        and all(0 <= axis < plan.spatial_dims for axis in plan.mirror_axes),
        "patch": len(plan.patch) == plan.spatial_dims and all(1 <= n <= MOST_AXIS for n in plan.patch),
        "whitening": whitening is None
        or {len(whitening.mean), len(whitening.matrix), *map(len, whitening.matrix)} == {channels},
        "overlap": 0 <= settings.overlap < 1 and 0 < settings.threshold < 1 and 1 <= settings.mesh_step <= MOST_AXIS,
        "graphs": len(graphs.files) == (1 if graphs.kind == "dense" else 2)
        and len(graphs.divisor) == plan.spatial_dims
        and all(1 <= n <= MOST_AXIS for n in graphs.divisor)
        and 0 <= graphs.frequencies <= 64
        and (graphs.fixed is None or len(graphs.fixed) == plan.spatial_dims),
    }
    wrong = next((name for name, holds in rules.items() if not holds), None)
    if wrong:
        raise ValueError(wrong)
