"""What a study compares: networks that differ in their architecture, or in one varied field, and in nothing else."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeVar

from ulna.errors import OtherDataError, UsageError
from ulna.networks.build import named, recommends
from ulna.networks.foreign import check_named, check_options
from ulna.networks.foreign.scaling import origin_words
from ulna.planning.class_weights import with_asked_weights
from ulna.planning.plan import Planned, TrainingData, plan_training
from ulna.recipe import (
    Architecture,
    Plan,
    Protocol,
    Recipe,
    Requires,
    merged,
    parse,
    renamed_path,
    set_value,
    to_yaml,
)
from ulna.study.budget import Budget, matched
from ulna.system.reading import parse_yaml

# Fields of a network's recommended recipe that belong to the network: which of its maps are supervised, and how, and at
# which points; for a head that reads points also how the same loss pools them, since those of one patch may hold none of a
# class. Everything else of a training is the study's own, the same for all.
OF_THE_NETWORK = ("loss.heads", "points.")
POOLING = "loss.options"

Sizes = dict[int, tuple[tuple[int, ...], int]]  # dimensions of a network -> patch and batch
T = TypeVar("T")


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Args:
        name: of the row: the model, and what is varied.
        recipe: with the architecture, before planning or after.
        footnotes: in what it differs from the others beside its architecture.
    """

    name: str
    recipe: Recipe
    footnotes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name as part of a path; names that would be cut, or that look alike then, end in a hash."""
        safe = re.sub(r"[^A-Za-z0-9._=+-]+", "_", self.name)
        if re.fullmatch(r"[A-Za-z0-9._=+/-]{1,100}", self.name):
            return safe
        return f"{safe[:90]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


def make_variants(
    models: Sequence[str],
    base: Mapping[str, Any],
    vary: Sequence[str],
    changes: Sequence[str],
    *,
    one_at_a_time: bool = False,
) -> list[Variant]:
    """The rows of a study, before planning.

    Args:
        models: names of networks; empty takes the one that `base` states.
        base: what the study's recipe file and flags state, the same for all; its own network counts only without `models`.
        vary: `KEY=V1,V2,...`; several make every combination.
        changes: `KEY=VALUE` for all.
        one_at_a_time: vary one field of every network and leave the others as they are; the unvaried network is a row too.

    Raises:
        UsageError: with every name, key or value that is wrong.
    """
    problems: list[str] = []
    variants: list[Variant] = []
    given = [base["model"]] if "model" in base else []
    axes = [_axis(text) for text in vary]
    _check_keys([key for axis in axes for key, _ in axis[:1]], [change.partition("=")[0].strip() for change in changes])
    own = base.get("architecture", {}) if not models else {}
    base = {name: value for name, value in base.items() if name not in ("model", "architecture")}
    for model in models or given:
        try:
            architecture = parse(Architecture, merged(named(model).model_dump(), own))
            check_named(architecture.foreign, "the recipe")
            recipe = _of_the_network(Recipe(model=model, architecture=architecture))
            recipe = parse(Recipe, merged(recipe.model_dump(), base))
            for change in changes:
                recipe = set_value(recipe, change)
            for chosen in _singly(axes) if one_at_a_time else itertools.product(*axes):
                varied, said = recipe, ""
                for key, value in chosen:
                    varied = set_value(varied, f"{key}={value}")
                    said += f" {key.removeprefix('architecture.')}={value}"
                varied = _pooling_points(varied)
                if varied.architecture.foreign is not None:
                    check_options(varied.architecture.foreign)
                if not (
                    one_at_a_time and chosen and varied == _pooling_points(recipe)
                ):  # a value that is there already
                    variants.append(Variant(model + said, varied, _footnotes(varied, [key for key, _ in chosen])))
        except UsageError as error:
            problems.append(f"{model}: {error}")
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    if not variants:
        raise UsageError("--models names no network, and no --recipe does; `ulna models` lists them")
    doubled = [v.name for v in variants if [w.name for w in variants].count(v.name) > 1]
    if doubled:
        raise UsageError(f"{doubled[0]} is named twice; name every network once")
    return variants


@dataclass(frozen=True)
class Settled:
    """Variants that train alike: one grid, one patch, one batch; every architecture stated in full."""

    variants: list[Variant]
    planned: list[Planned]  # of each
    sizes: Sizes  # that they share
    footnotes: tuple[str, ...] = field(default=())

    @property
    def plan(self) -> Plan:
        """That of the first, for what all share."""
        return self.planned[0].plan


def plan_variants(
    variants: Sequence[Variant],
    data: TrainingData,
    *,
    match: Budget | None,
    fixed: Mapping[str, Any] | None = None,
) -> Settled:
    """Plan for all of them at once: the smallest patch and the smallest batch that any of them would be given.

    Args:
        variants: as `make_variants` made them.
        data: what all are trained on.
        match: the size to scale every network to.
        fixed: patch and batch of a study that goes on.

    Raises:
        UsageError: with every network that these data, or the budget, do not allow.
    """
    plans = [one.plan for one in _of_each(variants, lambda variant: _plan(data, variant.recipe))]
    sizes = _shared_sizes(plans) | ({} if fixed is None else _fixed_sizes(fixed))
    footnotes = list(_of_sizes(variants, plans, sizes))
    dims = {variant.name: plan.spatial_dims for variant, plan in zip(variants, plans, strict=True)}

    def alike(variant: Variant) -> tuple[Planned, str]:
        own = variant.recipe.planning
        patch, batch = sizes[dims[variant.name]]
        planning = own.replaced(patch=own.patch or patch, batch=own.batch or batch)
        planned = _plan(data, variant.recipe.replaced(planning=planning))
        return (planned, "") if match is None else matched(planned, match)

    planned, notes = zip(*_of_each(variants, alike), strict=True)
    if len({*dims.values()}) > 1:
        footnotes.append(
            "networks of 2D read the slices of the volumes that those of 3D see whole; scores are of volumes for all"
        )
    done = [
        Variant(
            variant.name,
            with_asked_weights(one.recipe, variant.recipe),
            (*variant.footnotes, *([note] if note else [])),
        )
        for variant, one, note in zip(variants, planned, notes, strict=True)
    ]
    return Settled(done, list(planned), sizes, tuple(footnotes))


def _shared_sizes(plans: Sequence[Plan]) -> Sizes:
    """The smallest patch and batch that any network of as many dimensions would be given."""
    alike = {
        dims: [plan for plan in plans if plan.spatial_dims == dims] for dims in {plan.spatial_dims for plan in plans}
    }
    return {
        dims: (min((plan.patch for plan in some), key=math.prod), min(plan.batch for plan in some))
        for dims, some in sorted(alike.items())
    }


def _fixed_sizes(fixed: Mapping[str, Any]) -> Sizes:
    """Those of a study that goes on, as `sizes_of` has them."""
    return {len(one["patch"]): (tuple(one["patch"]), int(one["batch"])) for one in (fixed, *fixed.get("beside", ()))}


def sizes_of(settled: Settled) -> dict[str, Any]:
    """Patch and batch that all share, for a study that goes on; `beside`: those of networks of other dimensions."""
    found = [{"patch": list(patch), "batch": batch} for patch, batch in settled.sizes.values()]
    first, *others = found
    return {**first, "beside": others} if others else first


def _of_sizes(variants: Sequence[Variant], plans: Sequence[Plan], sizes: Sizes) -> Iterator[str]:
    """What is smaller for some than it would be alone."""
    for dims, shared in sizes.items():
        whom = "all" if {plan.spatial_dims for plan in plans} == {dims} else f"all of {dims}D"
        pairs = [(v, plan) for v, plan in zip(variants, plans, strict=True) if plan.spatial_dims == dims]
        for what, size in zip(("patch", "batch"), shared, strict=True):
            alone = _left_open([v for v, _ in pairs], [plan for _, plan in pairs], what)
            if any(one != size for one in alone.values()):
                said = ", ".join(f"{name} {_in_words(one)}" for name, one in alone.items())
                yield f"{what} {_in_words(size)} for {whom}, the smallest that any would be given; alone: {said}"


def _in_words(size: object) -> str:
    return _times(size) if isinstance(size, tuple) else str(size)


def _plan(data: TrainingData, recipe: Recipe) -> Planned:
    return plan_training(data, recipe, whiten=False)  # every training fits its own


def _of_each(variants: Sequence[Variant], make: Callable[[Variant], T]) -> list[T]:
    """What is made of every variant; what is wrong with any of them is told together."""
    made, problems = [], []
    for variant in variants:
        try:
            made.append(make(variant))
        except OtherDataError:
            raise
        except UsageError as error:
            problems.append(f"{variant.name}: {error}")
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)))
    return made


def _left_open(variants: Sequence[Variant], plans: Sequence[Plan], what: str) -> dict[str, Any]:
    """What the planner would give each of those whose recipe does not fix it."""
    pairs = zip(variants, plans, strict=True)
    return {v.name: getattr(plan, what) for v, plan in pairs if getattr(v.recipe.planning, what) is None}


def settings_of(recipe: Recipe) -> str:
    """A recipe without its architecture and its seed: what all variants of a study must share, unless it is varied."""
    shared = recipe.replaced(
        model="",
        architecture=Architecture(),
        training=recipe.training.replaced(seed=0, fold=None),
        requires=Requires(),
        study=Protocol(),
    )
    return to_yaml(shared)


def _of_the_network(recipe: Recipe) -> Recipe:
    """With what its recommended recipe says of its heads and points."""
    for key, value in recommends(recipe.model).items():
        if key.startswith(OF_THE_NETWORK):
            recipe = set_value(recipe, f"{key}={value}")
    return recipe


def _pooling_points(recipe: Recipe) -> Recipe:
    """With what the recommended recipe says of pooling, if the study has the loss that it speaks of, without options."""
    own = recommends(recipe.model)
    kind = own.get("loss.kind", Recipe().loss.kind)
    if (
        POOLING not in own
        or recipe.architecture.head.kind != "points"
        or recipe.loss.options
        or recipe.loss.kind != kind
    ):
        return recipe
    return set_value(recipe, f"{POOLING}={own[POOLING]}")


def _footnotes(recipe: Recipe, varied: Sequence[str]) -> tuple[str, ...]:
    """In what a training differs from the others beside its architecture and the fields varied, and from its own recipe."""
    notes = []
    for key, value in recommends(recipe.model).items():
        if key in varied:  # the row's name says it
            continue
        now = _value_at(recipe, key)
        pooled = key == POOLING and now == value and recipe.architecture.head.kind == "points"
        if key.startswith(OF_THE_NETWORK) or pooled:
            if now == value:
                notes.append(f"{key} = {value}, which belongs to this network's heads")
        elif now != value:
            here = "what the planner chooses for all" if now is None else now
            notes.append(
                f"its own recipe would set {key} = {value}; the study trains it with {here}, as it says for all"
            )
    if recipe.architecture.foreign is not None:
        notes.append(origin_words(recipe.architecture.foreign))
    elif recipe.architecture != named(recipe.model):
        notes.append("its architecture was changed by the study; published figures hold for the unchanged one")
    return tuple(notes)


def _check_keys(varied: Sequence[str], changed: Sequence[str]) -> None:
    """Refuse the fields that a study sets by itself."""
    flags = {"model": "--models", "training.seed": "--seeds", "training.fold": "--folds"}
    wrong = [f"{key}: the study sets it itself; use {flags[key]}" for key in (*varied, *changed) if key in flags]
    memory = ("planning.memory_gb", "planning.gpu_memory_gb")
    one_for_all = ("training.split", "training.test", "training.split_seed", "training.folds", *memory)
    alike = [key for key in varied if key in one_for_all or key.partition(".")[0] == "classes"]
    wrong += [f"{key}: is one for all rows, it cannot be varied" for key in alike]
    if wrong:
        raise UsageError("\n".join(wrong))


def _axis(text: str) -> list[tuple[str, str]]:
    key, equals, values = text.partition("=")
    chosen, depth = [""], 0
    for sign in values:  # a comma within brackets belongs to the value
        depth += (sign in "[{(") - (sign in ")}]")
        if sign == "," and depth == 0:
            chosen.append("")
        else:
            chosen[-1] += sign
    chosen = [value.strip() for value in chosen if value.strip()]
    if not equals or not key.strip() or len(chosen) < 2:
        raise UsageError(f"--vary {text}: expected KEY=V1,V2,..., for example loss.kind=dice,cross_entropy")
    key = renamed_path(key.strip(), parse_yaml(chosen[0], f"--vary {text}"))
    return [(key, value) for value in chosen]


def _singly(axes: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[tuple[str, str], ...]]:
    """Nothing changed, then every value of every field by itself."""
    return [(), *((pair,) for axis in axes for pair in axis)]


def _value_at(recipe: Recipe, path: str) -> Any:
    return reduce(getattr, path.split("."), recipe)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
