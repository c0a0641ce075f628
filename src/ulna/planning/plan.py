"""The one way from a data set and a recipe to a training: fingerprint, then plan, every choice with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ulna.data.formats.limits import within_memory
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset, Division, split
from ulna.data.pipeline.orientation import DIRECTIONS
from ulna.data.pipeline.points import count_points
from ulna.data.pipeline.preprocess import prepare
from ulna.data.pipeline.whitening import fit_whitening
from ulna.data.quality.check import Report, check_dataset
from ulna.data.quality.slices import SliceCount
from ulna.errors import UsageError, counted
from ulna.losses import make_loss
from ulna.networks.build import count_parameters
from ulna.networks.network import Network
from ulna.networks.profile.cost import count_gmacs
from ulna.planning.class_weights import with_weights
from ulna.planning.drafts import Drafts, network_shape, shape_of
from ulna.planning.fingerprint import fingerprint
from ulna.planning.fitting import check_plan, check_requires
from ulna.planning.grid import check_axes, check_divisor, check_grid, check_patch, fixed_sizes, kept_axes
from ulna.planning.length import in_epochs, resolve_length
from ulna.planning.levels import divisor_of
from ulna.planning.mask_values import AS_CLASSES, MaskValues, choose_mask_values
from ulna.planning.memory import MemoryEstimate, training_memory
from ulna.planning.normalising import capped, choose_normalization
from ulna.planning.sizes import choose_sizes, whole_image_limit
from ulna.planning.slices import choose_slices, of_volumes, plane_axes, slices_of
from ulna.planning.symmetry import mirror_axes, turn_axes
from ulna.recipe import (
    PLAN_FORMAT,
    Fingerprint,
    Labels,
    Plan,
    Planning,
    Recipe,
    Slices,
    Split,
    Training,
    check_one_structure,
)
from ulna.system.device import Device, find_device
from ulna.system.progress import track


@dataclass(frozen=True)
class TrainingData:
    """A data set that was read to its last byte, divided for one training.

    Args:
        dataset: its cases, with the dimensions that were found.
        split: which of them train, choose the epoch, and are kept for the end.
        labels: the classes, declared or found.
        fingerprint: of the training cases alone.
        notes: what is worth knowing.
        slices: of the training volumes across every axis that the network sees; empty for 2D images.
        mask_values: what mask files hold.
        colour: whether the training images are pictures of red, green and blue.
    """

    dataset: Dataset
    split: Split
    labels: Labels
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
    slices: tuple[SliceCount, ...] = ()
    mask_values: MaskValues = AS_CLASSES
    colour: bool = False


def read_training_data(dataset: Dataset, training: Training) -> TrainingData:
    """Read every case, and divide them as a recipe says.

    Raises:
        UsageError: if there are too few cases or groups, or no such fold; then nothing is read.
        DataError: with everything that is wrong with the cases.
    """
    wanted = division(training)
    dataset.check_divisible(wanted)
    report = check_dataset(dataset)
    report.raise_if_bad()
    seed = training.seed if training.split_seed is None else training.split_seed
    found = training_data(dataset, report, split(dataset.grouped(report.copies), seed, wanted=wanted))
    return replace(found, notes=(*found.notes, *unused_shares(dataset, training)))


def division(training: Training) -> Division:
    """How a recipe wants the cases to be divided."""
    return Division(training.fold, training.folds, training.shares, training.test)


def check_split_is_made(dataset: Dataset, shares: str | None) -> None:
    """Refuse shares that a command asks for where the data set brings its own split; a recipe's are passed over.

    Raises:
        UsageError: with what to do.
    """
    if shares is not None and dataset.given_splits:
        raise UsageError(
            f"--split {shares}: the data set brings its own split; leave --split out, or take the split file away"
        )


def unused_shares(dataset: Dataset, training: Training) -> list[str]:
    """A note where a recipe says how to divide the cases, and they are divided in another way."""
    said = [] if training.split is None else [f"training.split={training.split}"]
    if training.test is not None:
        said.append(f"training.test={json.dumps(training.test)}")
    if not said or not (dataset.given_splits or training.fold is not None):
        return []
    why = "the data set brings its own split" if dataset.given_splits else "one of its folds is trained"
    return [f"{' and '.join(said)} {'is' if len(said) == 1 else 'are'} not used: {why}"]


def training_data(dataset: Dataset, report: Report, parts: Split) -> TrainingData:
    """What a check found, for one split."""
    found = fingerprint(report, parts.train, dataset.channel_names)
    counts = slices_of(report, parts.train)
    labels, train = report.labels or Labels(), set(parts.train)
    scans = [one for one in report.scans if one.case in train]
    return TrainingData(
        dataset.of_dims(report.spatial_dims),
        parts,
        labels,
        found,
        report.notes,
        counts,
        choose_mask_values(scans, labels),
        all(one.colour for one in scans),
    )


@dataclass(frozen=True, eq=False)
class Planned:
    """A training before it begins: all that is fixed, and what it will take.

    Args:
        recipe: as resolved: the architecture has widths and strides of every level, and the length is in numbers.
        plan: what the data fixed.
        split: of the cases.
        network: the network, without memory (meta device).
        device: what it is planned for.
        length: how long the training is, and why.
    """

    recipe: Recipe
    plan: Plan
    split: Split
    network: Network
    device: Device
    length: str = "as its recipe says"

    @property
    def points(self) -> int | None:
        """How many points of a patch a step reads; None where it reads all voxels."""
        return count_points(self.recipe.points, math.prod(self.plan.patch), sparse=self.network.head.sparse)

    @cached_property
    def parameters(self) -> int:
        """Trainable values."""
        return count_parameters(self.network)

    @cached_property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates of one forward pass over a patch, or over its points."""
        return count_gmacs(self.network, self.plan.patch, points=self.points)

    @cached_property
    def memory(self) -> MemoryEstimate:
        """What the training takes at its peak, in this process."""
        return self._memory(elsewhere=False)

    @cached_property
    def memory_elsewhere(self) -> MemoryEstimate:
        """The same in a process of its own, as a study trains."""
        return self._memory(elsewhere=True)

    def memory_on(self, devices: int) -> MemoryEstimate:
        """The same on several devices: what each GPU holds, or all processes of a CPU together."""
        return self.memory if devices == 1 else self._memory(devices=devices)

    def _memory(self, **how: Any) -> MemoryEstimate:
        cases = len(self.split.train) + len(self.split.val)
        return training_memory(self.network, self.plan, self.recipe, device=self.device, cases=cases, **how)


def plan_training(
    data: TrainingData,
    recipe: Recipe,
    *,
    given: Plan | None = None,
    source: str = "the plan",
    whiten: bool = True,
    device: Device | None = None,
) -> Planned:
    """Choose grid, normalisation, patch, depth, batch and length for one recipe, and build the network without memory.

    Source: the rules follow nnU-Net's planner (isensee2021): median spacing, pool while a map keeps 4 voxels, CT by
    global statistics of the foreground; sizes are set for a CPU with a few GB, or for the memory of the GPU.

    Args:
        data: read and divided.
        recipe: as it was chosen.
        given: a plan to train by, as it is; nothing is chosen then.
        source: what a message calls it.
        whiten: fit the whitening and the percentile that the recipe asks for, which reads all training cases again; no
            other choice depends on them.
        device: that it will run on; left out, that of this machine.

    Raises:
        UsageError: if what the recipe fixes does not fit the data, the network cannot be built for them, or a given plan does
            not fit, with everything that differs.
    """
    found, labels, device = data.fingerprint, data.labels, device or find_device()
    reasons: dict[str, str] = {} if given is None else dict(given.reasons)
    if given is not None:
        across = None if given.slices is None else given.slices.plane
        check_requires(recipe, found, labels, dims=given.spatial_dims, plane=across, source=data.dataset.root)
        recipe, length = resolve_length(recipe, device, slices=given.slices is not None)
        check_plan(given, recipe, source, labels=labels, channel_names=found.channel_names, found=found)
        given = given.replaced(**_pictures(data, reasons), reasons=reasons)  # of these data, whatever it was made for
        return replace(planned_by(given, recipe, data.split, device), length=length)
    slices = choose_slices(found, data.slices, recipe, labels, reasons)
    recipe, length = resolve_length(recipe, device, slices=slices is not None)
    dims, thickness = (found.spatial_dims, 1) if slices is None else (2, slices.thickness)
    drafts = Drafts(recipe, network_shape(found.channels * thickness, dims, labels))
    recipe = drafts.recipe  # with the sizes that a network of others takes
    orientation = _orientation(found, reasons)
    across = None if slices is None else slices.plane
    check_requires(recipe, found, labels, dims=dims, plane=across, source=data.dataset.root)
    planning = recipe.planning if slices is None else of_volumes(recipe.planning, slices)
    check_grid(planning)
    grid = _grid(found, planning, slices, reasons)
    spacing, size = fixed_sizes(found, planning, grid.spacing, grid.size, reasons)
    axes = range(dims) if slices is None else slices.plane
    patch_size, patch_spacing = tuple(size[axis] for axis in axes), tuple(spacing[axis] for axis in axes)
    check_divisor(recipe.planning, patch_size, recipe.architecture, recipe.model)
    normalization = choose_normalization(found, recipe.planning, reasons)
    examples = (found.cases, "training cases") if slices is None else (slices.per_epoch, "slices of an epoch")
    patch, strides, batch = choose_sizes(examples, patch_size, patch_spacing, drafts, device, reasons)
    check_patch(recipe.planning, patch_size, patch, divisor_of(strides, dims))
    world_axes = found.world_axes if slices is None else plane_axes(found.world_axes, slices)
    mirror, reasons["mirror_axes"] = (
        mirror_axes(labels.names, dims, world_axes)
        if recipe.augmentation.flip
        else ((), "no flips: augmentation.flip is 0")
    )
    oriented = found.spatial_dims == 3 and orientation is not None
    turn, reasons["turn_axes"] = turn_axes(patch, patch_spacing, mirror, oriented=oriented)
    pictures = _pictures(data, reasons)
    plan = Plan(
        format=PLAN_FORMAT,
        spatial_dims=dims,
        in_channels=found.channels,
        channel_names=found.channel_names,
        labels=labels,
        **pictures,
        orientation=orientation,
        spacing=spacing,
        unit=found.unit,
        kept_axes=grid.kept,
        size=planning.size,
        crop=planning.crop,
        slices=slices,
        normalization=normalization,
        patch=patch,
        batch=batch,
        strides=strides,
        whole_image_limit=whole_image_limit(drafts.network(strides), recipe.architecture.foreign, patch, reasons),
        mirror_axes=mirror,
        turn_axes=turn,
        reasons=reasons,
        fingerprint=found,
    )
    if whiten and recipe.planning.cap is not None:
        plan = capped(plan, recipe.planning.cap, data.dataset.cases_of(data.split.train))
    if whiten and recipe.planning.whitening is not None:
        plan = whitened(plan, data.dataset.cases_of(data.split.train))
    return replace(_planned(recipe, plan, data.split, drafts, device), length=length)


def planned_by(plan: Plan, recipe: Recipe, parts: Split, device: Device | None = None) -> Planned:
    """A training by a plan that is there already, and of the length that its recipe says.

    Raises:
        UsageError: if the network cannot be built for it.
    """
    return _planned(recipe, plan, parts, Drafts(recipe, shape_of(plan)), device or find_device())


def _planned(recipe: Recipe, plan: Plan, parts: Split, drafts: Drafts, device: Device) -> Planned:
    if recipe.inference.instances is not None:
        check_one_structure(plan.labels, "inference.instances")
    recipe, plan = with_weights(recipe, plan)
    loss = recipe.loss
    make_loss(loss.kind, options=loss.options, heads=loss.heads, multilabel=plan.labels.multilabel).check(
        plan.labels.outputs
    )
    architecture, network = drafts.architecture(plan.strides), drafts.network(plan.strides)
    network.activation_checkpointing = recipe.training.activation_checkpointing
    samples = len(parts.train) if plan.slices is None else plan.slices.per_epoch
    recipe = recipe.replaced(
        architecture=architecture,
        planning=recipe.planning.replaced(parameters=None),
        training=in_epochs(recipe.training, samples, plan.batch, slices=plan.slices is not None),
    )
    return Planned(recipe, plan, parts, network, device)


def _pictures(data: TrainingData, reasons: dict[str, str]) -> dict[str, Any]:
    """What pictures of images and masks hold; adds the reason."""
    if data.mask_values.reason:
        reasons["mask_values"] = data.mask_values.reason
    else:
        reasons.pop("mask_values", None)
    return {"colour": data.colour, "mask_values": data.mask_values.values}


def whitened(plan: Plan, cases: Sequence[Case]) -> Plan:
    """The plan with a ZCA matrix fitted on all voxels of these cases, which are the training cases."""
    fitted = fit_whitening(_prepared(case, plan) for case in track(cases, "whitening"))
    why = f"zca: fitted on all voxels of the {counted(len(cases), 'training case')}, as the recipe asks"
    return plan.replaced(whitening=fitted, reasons={**plan.reasons, "whitening": why})


def _prepared(case: Case, plan: Plan) -> Tensor:
    with within_memory(case.images[0]):
        prepared = prepare(case.read_image(), plan)
    return prepared.image[prepared.inside]


def _orientation(data: Fingerprint, reasons: dict[str, str]) -> Literal["RAS"] | None:
    """What images are turned to for the network, and why."""
    if data.orientation is None:
        reasons["orientation"] = "the axes stay as the files store them: not every file says how the patient lies"
        return None
    counts = ", ".join(f"{count} {letters}" for letters, count in sorted(data.orientations.items()))
    sides = "{}, {} and {}".format(*DIRECTIONS)
    reasons["orientation"] = f"RAS: every image is turned so that its axes run from {sides} (stored: {counts})"
    return "RAS"


class _Grid(NamedTuple):
    """The spacing of the network's grid, the median size of the images on it, and the axes along which each keeps its own."""

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    kept: tuple[int, ...] = ()


def _grid(data: Fingerprint, planning: Planning, slices: Slices | None, reasons: dict[str, str]) -> _Grid:
    """By what `planning` says of the axes of the images."""
    grid = _whole_grid(data, planning, reasons)
    if slices is None or planning.spacing is not None or data.unit == "px":
        return grid
    reasons["spacing"] += f"; across the slices, along axis {slices.axis}, every volume keeps its own"
    return grid._replace(kept=(slices.axis,))


def _whole_grid(data: Fingerprint, planning: Planning, reasons: dict[str, str]) -> _Grid:
    median, unit = tuple(float(s) for s in data.spacing.median), data.unit
    size = tuple(round(n) for n in data.size.median)
    check_axes(planning, data.spatial_dims)
    if planning.spacing is not None:
        wanted = tuple(m if s is None else s for s, m in zip(planning.spacing, median, strict=True))
        reasons["spacing"] = f"{list(wanted)} {unit}: fixed by the recipe"
        if None in planning.spacing:
            own = [axis for axis, step in enumerate(planning.spacing) if step is None]
            reasons["spacing"] += (
                f"; every image keeps its own along axis {' and '.join(map(str, own))}, here the median"
            )
        size = tuple(max(1, round(n * s / t)) for n, s, t in zip(size, median, wanted, strict=True))
        return _Grid(wanted, size, kept_axes(planning))
    if unit == "px":
        reasons["spacing"] = "1 px, every image's own grid: the files state no physical size"
        return _Grid((1.0,) * len(size), size)
    if data.spacing.min == data.spacing.max:
        reasons["spacing"] = f"{_numbers(median)} mm, that of all cases"
        return _Grid(median, size)
    reasons["spacing"] = (
        f"{_numbers(median)} mm, the median; the cases reach from {_numbers(data.spacing.min)} "
        f"to {_numbers(data.spacing.max)} mm"
    )
    return _Grid(median, size)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
