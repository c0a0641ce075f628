"""Whether volumes are trained on as slices, and which: for a 2D network, as a recipe asks or as the network must."""

from __future__ import annotations

from collections.abc import Sequence

from ulna.data.pipeline.orientation import DIRECTIONS
from ulna.data.pipeline.slices import ALIKE, coarsest_axis
from ulna.data.quality.check import Report
from ulna.data.quality.slices import SliceCount, added
from ulna.errors import UsageError, counted
from ulna.networks.build import validate
from ulna.planning.fingerprint import turns_of
from ulna.planning.symmetry import ASKEW
from ulna.recipe import Fingerprint, Labels, Planning, Recipe, Slices

PLANE_NAMES = ("sagittal", "coronal", "axial")  # slices across each of the patient's axes


def slices_of(report: Report, train: Sequence[str]) -> tuple[SliceCount, ...]:
    """The slices of the training cases across every axis, as the network sees them; none of 2D images."""
    chosen = set(train)
    scans = [one for one in report.scans if one.size and one.case in chosen]
    if not scans or any(not one.slices for one in scans):
        return ()
    return added([turn.order(one.slices) for one, turn in zip(scans, turns_of(scans), strict=True)])


def choose_slices(
    found: Fingerprint, counts: Sequence[SliceCount], recipe: Recipe, labels: Labels, reasons: dict[str, str]
) -> Slices | None:
    """The slices that a 2D network reads of volumes, with the reason; None where images are seen whole.

    Args:
        found: what the training cases are.
        counts: from `slices_of`; where they are not known, all slices are taken to hold a structure.
        recipe: its `planning`.
        labels: the classes.
        reasons: the reason is added.

    Raises:
        UsageError: if slices are asked of 2D images, or something of them where volumes are seen whole.
    """
    wanted = recipe.planning
    said = {
        "slice_axis": wanted.slice_axis,
        "empty_slices": wanted.empty_slices,
        "neighbours": wanted.neighbours or None,
    }
    asked = [f"planning.{name}={value}" for name, value in said.items() if value is not None]
    if found.spatial_dims == 2:
        if wanted.spatial_dims == 3:
            asked = ["planning.spatial_dims=3"]
        if asked:
            raise UsageError(
                f"{', '.join(asked)}: these images are 2D and have no slices; leave it out, or give volumes"
            )
        return None
    why = _why_2d(found, recipe, labels)
    if not why:
        if asked:
            raise UsageError(
                f"{', '.join(asked)}: is of slices, and this network sees volumes whole; add planning.spatial_dims=2 to "
                "train it on slices, or leave it out"
            )
        return None
    axis, because = _axis(found, wanted.slice_axis)
    count = counts[axis] if counts else SliceCount(full=round(found.size.median[axis]) * found.cases)
    empty, share_because = _empty_share(count, wanted.empty_slices, recipe.training.foreground)
    slices = Slices(
        axis=axis, neighbours=wanted.neighbours, empty=empty, full_count=count.full, empty_count=count.empty
    )
    beside = f", each with {wanted.neighbours} on either side as channels" if wanted.neighbours else ""
    reasons["slices"] = f"across axis {axis}{_named(found, axis)}{beside}: {why}; {because}"
    blank = f", and {count.blank:,} that hold one value alone are left out" if count.blank else ""
    reasons["empty_slices"] = (
        f"{empty:.0%} of the slices without a structure are drawn in an epoch, {share_because}: of the {count.all:,} slices "
        f"of the training cases {count.full:,} hold one, {count.empty:,} hold none{blank}"
    )
    return slices


def stated(wanted: Planning) -> dict[str, float]:
    """What a recipe says of slices, by the names of `planning`; what it leaves to the planner is left out."""
    said = {
        "slice_axis": wanted.slice_axis,
        "empty_slices": wanted.empty_slices,
        "neighbours": wanted.neighbours or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def of_volumes(planning: Planning, slices: Slices) -> Planning:
    """What is said of the plane of slices, said of volumes: null across the slices, where every volume keeps its own.

    Raises:
        UsageError: if there are not as many entries as the plane has axes, or of a spacing as the volume has.

    Example:
        >>> of_volumes(Planning(crop=(144, 144)), Slices(axis=1, full_count=1, empty_count=0)).crop
        (144, None, 144)
    """
    lifted: dict[str, tuple[float | None, ...]] = {}
    for name in ("spacing", "size", "crop"):
        values = getattr(planning, name)
        if values is not None and len(values) == 2:
            lifted[name] = (*values[: slices.axis], None, *values[slices.axis :])
        elif values is not None and (name != "spacing" or len(values) != 3):
            wanted = (
                "2 lengths, of the plane of a slice, or 3, of the volume"
                if name == "spacing"
                else ("2 numbers of voxels, of the plane of a slice, or null along an axis that it leaves open")
            )
            raise UsageError(
                f"planning.{name} has {counted(len(values), 'entry')}, and the network reads slices; give {wanted}"
            )
    return planning.replaced(patch=None, **lifted)


def plane_axes(world_axes: Sequence[int | None] | None, slices: Slices) -> list[int | None] | None:
    """The patient's axes in the plane of slices, as `mirror_axes` takes them: of volumes -> of slices.

    Example:
        >>> plane_axes((0, 1, 2), Slices(axis=1, full_count=1, empty_count=0))
        [0, None, 1]
    """
    if world_axes is None:
        return None
    found: list[int | None] = []
    for axis in world_axes:
        if axis is None:  # oblique, or not the same in every volume
            found.append(ASKEW)
        else:
            found.append(slices.plane.index(axis) if axis in slices.plane else None)
    return found


def _why_2d(found: Fingerprint, recipe: Recipe, labels: Labels) -> str:
    """Why volumes are trained on as slices; empty where they are not."""
    if recipe.planning.spatial_dims is not None:
        return "planning.spatial_dims=2" if recipe.planning.spatial_dims == 2 else ""
    architecture = recipe.architecture
    if any(len(step) == 2 for step in architecture.strides or ()):
        return f"the strides of {recipe.model} are those of a 2D network"
    shape = {"in_channels": found.channels, "classes": labels.outputs, "multilabel": labels.multilabel}
    try:
        validate(architecture, spatial_dims=3, **shape)
    except UsageError as error:
        try:
            validate(architecture, spatial_dims=2, **shape)
        except UsageError:
            return ""  # it cannot be built at all, which is told where it is built
        return f"{recipe.model} can be built in 2D alone ({error})"
    return ""


def _axis(found: Fingerprint, wanted: int | None) -> tuple[int, str]:
    """The axis that slices lie across, and why."""
    if wanted is not None:
        return wanted, "the axis is fixed by the recipe"
    spacing = found.spacing.median
    axis = coarsest_axis(spacing, oriented=found.orientation is not None)
    others = [step for other, step in enumerate(spacing) if other != axis]
    if max(others) < (1 - ALIKE) * spacing[axis]:
        beside = " x ".join(f"{step:g}" for step in others)
        return axis, f"its spacing is the largest, {spacing[axis]:g} beside {beside} {found.unit}"
    which = (
        "the one nearest to foot to head" if found.orientation is not None else "the first, by which stacks are stored"
    )
    return axis, f"of the axes with the largest spacing {which}"


def _named(found: Fingerprint, axis: int) -> str:
    """How such slices are called, where the files say how the patient lies."""
    if found.orientation is None or found.worlds is None:
        return ""
    world = found.worlds[axis]
    return f" ({DIRECTIONS[world]}: {PLANE_NAMES[world]} slices)"


def _empty_share(count: SliceCount, wanted: float | None, foreground: float) -> tuple[float, str]:
    """The share of the slices without a structure that an epoch draws, and why."""
    if wanted is not None:
        return wanted, "as the recipe says"
    if not count.empty or not foreground or count.full >= foreground * (count.full + count.empty):
        return 1.0, f"since {count.full / max(1, count.full + count.empty):.0%} of all hold one"
    share = count.full * (1 - foreground) / foreground / count.empty
    return share, f"so that {foreground:.0%} of those that are drawn hold one (training.foreground)"
