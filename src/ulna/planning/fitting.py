"""Whether a plan from a file fits the recipe and the data that it is used with: everything that does not is told at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ulna.errors import OtherDataError, UsageError, brief, counted, listed, printable
from ulna.networks.build import levels
from ulna.planning.drafts import Drafts, shape_of
from ulna.planning.grid import stated_spacing
from ulna.planning.slices import stated
from ulna.recipe import PLAN_FORMAT, Architecture, Fingerprint, Labels, Plan, Recipe

CHOSEN = ("spacing", "size", "crop", "patch", "batch", "window", "cap")  # fields of `planning` that a plan holds
_SHOWN = 8  # names in a message


def check_plan(
    plan: Plan,
    recipe: Recipe,
    source: str,
    *,
    labels: Labels | None = None,
    channel_names: Sequence[str] | None = None,
    found: Fingerprint | None = None,
) -> None:
    """Refuse a plan that does not fit.

    Before the cases are read, a recipe that does not fit is refused at once, with what is known of the data.

    Args:
        plan: from a file.
        recipe: that it is used with.
        source: the file.
        labels: the classes, where they are known.
        channel_names: where they are known.
        found: of the training cases; left out before they are read.

    Raises:
        UsageError: with everything that does not fit.
    """
    problems = [*_format(plan), *_recipe(plan, recipe)]
    if problems or found is not None:
        problems += _names(plan, labels, channel_names)
    if found is not None:
        problems += _data(plan, found, alone=not problems)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise UsageError(
            f"{printable(source)}: this plan does not fit; leave out what differs, or plan again with `ulna plan`:{lines}"
        )


def check_requires(
    recipe: Recipe,
    found: Fingerprint,
    labels: Labels,
    *,
    dims: int,
    source: object,
    plane: Sequence[int] | None = None,
) -> None:
    """Refuse data that are not in the state which a recipe is for.

    Args:
        recipe: with what it requires.
        found: of the training cases.
        labels: the classes.
        dims: spatial dimensions of the network.
        source: the data set.
        plane: the axes of a volume that its slices span, where the network reads slices; None: it reads images whole.

    Raises:
        OtherDataError: with everything that is not so.
    """
    about = {
        "spatial_dims": dims,
        "channels": found.channels,
        "classes": len(labels.foreground),
        "multilabel": labels.multilabel,
        "size": tuple(
            end if plane is None else tuple(end[axis] for axis in plane) for end in (found.size.min, found.size.max)
        ),
    }
    if missed := recipe.requires.missed(about):
        meant = f"the recipe is for {recipe.requires.data}; " if recipe.requires.data else ""
        fields = " ".join(f"--set {one.split(' ', 1)[0]}=null" for one in missed)
        raise OtherDataError(
            f"{printable(source)}: {meant}{'; '.join(missed)}; prepare the data so, or go on without: {fields}"
        )


def recipe_of(plan: Plan) -> Recipe | None:
    """The recipe that a plan holds, in line with what a person has changed in the plan since."""
    recipe = plan.recipe
    if recipe is None:
        return None
    planning, architecture = recipe.planning, recipe.architecture
    kinds = {channel.kind for channel in plan.normalization}
    changes = {name: _held(plan, name, mine) for name in CHOSEN if (mine := getattr(planning, name)) is not None}
    if planning.normalization is not None and kinds != {planning.normalization}:
        changes["normalization"] = kinds.pop() if len(kinds) == 1 else None
    if plan.slices is not None:
        slices = plan.slices
        changes |= {"neighbours": slices.neighbours}
        changes |= {"slice_axis": slices.axis} if planning.slice_axis is not None else {}
        changes |= {"empty_slices": slices.empty} if planning.empty_slices is not None else {}
    changes["whitening"] = None if plan.whitening is None else "zca"
    if architecture.strides is not None:
        architecture = architecture.replaced(strides=plan.strides)
    return recipe.replaced(planning=planning.replaced(**changes), architecture=architecture)


def _held(plan: Plan, name: str, wanted: Any) -> Any:
    """What a plan holds for a field of `planning`, as a recipe states it; None where its channels differ, or for nothing.

    Of slices a recipe states two entries for the plane, and the plan holds three of the volume.
    """
    if name in ("spacing", "size", "crop"):
        own: Any = stated_spacing(plan) if name == "spacing" else getattr(plan, name)
        in_plane = own is not None and wanted is not None and len(wanted) == plan.spatial_dims
        return tuple(own[axis] for axis in plan.patch_axes) if in_plane else own
    if name == "cap":
        caps = {channel.cap for channel in plan.normalization}
        return caps.pop() if len(caps) == 1 else None
    if name == "window":
        clips = {channel.clip for channel in plan.normalization}
        clip = clips.pop() if len(clips) == 1 else None
        return None if clip is None or None in clip else clip
    return getattr(plan, name)


def other_cases(plan: Plan, found: Fingerprint) -> tuple[str, ...]:
    """A note where a plan was made for other training cases of the same data, by another split or seed."""
    if _compared(plan.fingerprint) == _compared(found):
        return ()
    return (
        f"the plan was made for other training cases of these data ({plan.fingerprint.cases} there, {found.cases} here): "
        "cases that now choose the epoch, or are kept for the end, may have shaped it",
    )


def _compared(told: Fingerprint) -> Fingerprint:
    """Without what earlier plans do not hold, and what follows from the same images."""
    return told.replaced(extent=None, values=(), tilt=None, modalities={}, body_parts={})


def _format(plan: Plan) -> Iterator[str]:
    if plan.format != PLAN_FORMAT:
        yield f"its format is {plan.format}, of an earlier ulna; trainings take {PLAN_FORMAT}"
    for side, divisor in zip(plan.patch, _divisor(plan), strict=True):
        if divisor >= 2 * side:
            yield f"its strides divide {side} pixels of the patch by {divisor}, and the deepest map would have none"
            return


def _divisor(plan: Plan) -> list[int]:
    return [math.prod(step[axis] for step in plan.strides) for axis in range(plan.spatial_dims)]


def _recipe(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """What a recipe fixes otherwise, and the network where it is not the one that the plan was made for."""
    wanted = recipe.planning
    for name in CHOSEN:
        mine = getattr(wanted, name)
        its = _held(plan, name, mine)
        if mine is not None and mine != its:
            yield f"planning.{name} is {_shown(mine)}, in the plan it is {_shown(its)}"
    yield from _slices(plan, recipe)
    kinds = sorted({channel.kind for channel in plan.normalization})
    if wanted.normalization is not None and kinds != [wanted.normalization]:
        yield f"planning.normalization is {wanted.normalization}, in the plan it is {', '.join(kinds)}"
    if (wanted.whitening is None) != (plan.whitening is None):
        its = "nothing" if plan.whitening is None else "a matrix"
        yield f"planning.whitening is {wanted.whitening or 'left out'}, and the plan holds {its} for it"
    depth = list(_depth(plan, recipe))
    yield from depth
    if plan.recipe is None:
        return
    if recipe.model != plan.recipe.model:
        yield f"model is {recipe.model}, the plan was made for {plan.recipe.model}"
    elif not depth and _network(recipe) != _network(plan.recipe):
        mine, its = (_architecture(one, plan) for one in (recipe, plan.recipe))
        yield from _differences(mine, its, "architecture")
    yield from _differences(recipe.points.model_dump(), plan.recipe.points.model_dump(), "points")


def _slices(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """What a recipe says of the network's dimensions and of slices that is otherwise in the plan."""
    wanted, its = recipe.planning, plan.slices
    if wanted.spatial_dims is not None and wanted.spatial_dims != plan.spatial_dims:
        yield f"planning.spatial_dims is {wanted.spatial_dims}, the plan is of a {plan.spatial_dims}D network"
        return
    said = stated(wanted)
    if its is None:
        yield from (f"planning.{name} is {mine}, the plan is not of slices" for name, mine in said.items())
        return
    there = {"slice_axis": its.axis, "neighbours": its.neighbours, "empty_slices": its.empty}
    for name, mine in said.items():
        if mine != there[name]:
            yield f"planning.{name} is {mine}, in the plan it is {there[name]}"


def _depth(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Whether the strides of the plan are those of the architecture, or may be."""
    architecture = recipe.architecture
    if architecture.foreign is not None:  # its sizes are its own, whatever the plan
        return
    if architecture.strides is not None:
        steps = tuple(step * plan.spatial_dims if len(step) == 1 else step for step in architecture.strides)
        if steps != plan.strides:
            yield f"architecture.strides are {_shown(steps)}, in the plan they are {_shown(plan.strides)}"
        return
    count = levels(architecture)
    fixed = architecture.channels is not None or architecture.levels is not None
    if count < plan.levels or (fixed and count != plan.levels):
        yield f"the architecture of {recipe.model} has {counted(count, 'level')}, the plan {plan.levels}"


def _network(recipe: Recipe) -> tuple[Architecture, int | None]:
    """As a person states it."""
    return recipe.architecture, recipe.planning.parameters


def _architecture(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """As resolved: widths may be stated, or follow from others, or from a budget."""
    of_the_widths = {"base_channels", "max_channels", "max_levels"}
    return Drafts(recipe, shape_of(plan)).architecture(plan.strides).model_dump(exclude=of_the_widths)


def _differences(mine: Mapping[str, Any], its: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, value in mine.items():
        if value != its[name]:
            yield f"{path}.{name} is {_shown(value)}, the plan was made for {_shown(its[name])}"


def _names(plan: Plan, labels: Labels | None, channel_names: Sequence[str] | None) -> Iterator[str]:
    if labels is not None and labels != plan.labels:
        yield f"the classes of these data are {_classes(labels)}, those of the plan {_classes(plan.labels)}"
    if channel_names is not None and tuple(channel_names) != plan.channel_names:
        here, there = (listed(names, _SHOWN) for names in (channel_names, plan.channel_names))
        yield f"the channels of these data are {here}, those of the plan {there}"


def _data(plan: Plan, found: Fingerprint, *, alone: bool) -> Iterator[str]:
    if found.spatial_dims != plan.image_dims:
        yield f"these images are {found.spatial_dims}D, those of the plan {plan.image_dims}D"
    elif (mine := _placed(found.unit, found.orientation)) != (its := _placed(plan.unit, plan.orientation)):
        yield f"these images {mine}, those of the plan {its}"
    elif alone and found.digest != plan.fingerprint.digest:
        yield f"it was made for other cases (fingerprint {plan.fingerprint.digest}, these have {found.digest})"


def _placed(unit: str, orientation: str | None) -> str:
    size = "state sizes in mm" if unit == "mm" else "are in pixels"
    return f"{size} and {'an' if orientation else 'no'} orientation"


def _classes(labels: Labels) -> str:
    return listed(labels.described, _SHOWN) + (" (overlapping)" if labels.multilabel else "")


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, tuple) and None in value:
        return f"[{', '.join(map(_shown, value))}]"
    return brief([list(one) if isinstance(one, tuple) else one for one in value] if isinstance(value, tuple) else value)
