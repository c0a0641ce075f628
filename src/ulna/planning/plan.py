"""From what the data are to how they are trained on: fingerprint, then plan, every choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from ulna.data.formats.limits import memory as machine_memory
from ulna.data.formats.limits import within_memory
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset, split
from ulna.data.pipeline.orientation import DIRECTIONS
from ulna.data.pipeline.preprocess import prepare
from ulna.data.pipeline.whitening import fit_whitening
from ulna.data.quality.check import check_dataset
from ulna.errors import UsageError
from ulna.networks.build import validate
from ulna.planning.choosing import recommended
from ulna.planning.fingerprint import fingerprint
from ulna.planning.memory import MemoryEstimate, training_memory
from ulna.planning.sizes import choose_sizes, resolved
from ulna.planning.symmetry import mirror_axes, turn_axes
from ulna.recipe import (
    PLAN_FORMAT,
    Architecture,
    Fingerprint,
    Labels,
    Normalization,
    Plan,
    Recipe,
    to_yaml,
)
from ulna.system.device import choose_precision, default_device
from ulna.system.files import write_text
from ulna.system.outputs import RUN_FILE, check_names
from ulna.system.progress import track
from ulna.system.reading import read_yaml

# An image of up to this many pixels is predicted in one piece: 2D networks see it whole, volumes go by patches.
WHOLE_IMAGE = {2: 1024 * 1024, 3: 64**3}


def make_plan(data: Fingerprint, recipe: Recipe, labels: Labels) -> Plan:
    """Choose grid, normalisation, patch, depth and batch for one recipe.

    Source: the rules follow nnU-Net's planner (isensee2021): median spacing, pool while a map keeps 4 voxels, CT by
    global statistics of the foreground; sizes are set for a CPU with a few GB.

    Raises:
        UsageError: if what the recipe fixes does not fit the data.
    """
    dims = data.spatial_dims
    reasons: dict[str, str] = {}
    orientation = _orientation(data, reasons)
    spacing, size = _grid(data, recipe, reasons)
    normalization = _normalization(data, recipe, reasons)
    patch, strides, batch = choose_sizes(data, size, spacing, recipe, labels, reasons)
    world = data.world_axes
    mirror, reasons["mirror_axes"] = (
        mirror_axes(labels.names, dims, world) if recipe.augmentation.flip else ((), "no flips: augmentation.flip is 0")
    )
    oriented = dims == 3 and orientation is not None
    turn, reasons["turn_axes"] = turn_axes(patch, spacing, mirror, oriented=oriented)
    return Plan(
        format=PLAN_FORMAT,
        spatial_dims=dims,
        in_channels=data.channels,
        channel_names=data.channel_names,
        labels=labels,
        orientation=orientation,
        spacing=spacing,
        unit=data.unit,
        normalization=normalization,
        patch=patch,
        batch=batch,
        strides=strides,
        whole_image_limit=max(WHOLE_IMAGE[dims], math.prod(patch)),
        mirror_axes=mirror,
        turn_axes=turn,
        reasons=reasons,
        fingerprint=data,
    )


def resolve(recipe: Recipe, plan: Plan) -> Architecture:
    """The architecture with what planning fixed.

    Raises:
        UsageError: if the network cannot be built for these data.
    """
    architecture = resolved(recipe, plan.strides, plan.spatial_dims, plan.in_channels, plan.labels)
    validate(
        architecture,
        in_channels=plan.in_channels,
        classes=plan.labels.outputs,
        spatial_dims=plan.spatial_dims,
        multilabel=plan.labels.multilabel,
    )
    return architecture


def estimate_training_memory(recipe: Recipe, plan: Plan, *, cases: int) -> MemoryEstimate:
    """The memory that a training takes at its peak, before it begins.

    Args:
        recipe: with the architecture resolved, or as it was given.
        plan: of the data.
        cases: that are kept in memory: for training and for validation.
    """
    network = validate(
        resolved(recipe, plan.strides, plan.spatial_dims, plan.in_channels, plan.labels),
        in_channels=plan.in_channels,
        classes=plan.labels.outputs,
        spatial_dims=plan.spatial_dims,
        multilabel=plan.labels.multilabel,
    )
    network.activation_checkpointing = recipe.training.activation_checkpointing
    bf16 = choose_precision(recipe.training.precision, default_device()) == "bf16"
    return training_memory(network, plan, recipe, bf16=bf16, cases=cases)


def whitened(plan: Plan, cases: Sequence[Case]) -> Plan:
    """The plan with a ZCA matrix fitted on all voxels of these cases, which are the training cases."""
    fitted = fit_whitening(_prepared(case, plan) for case in track(cases, "whitening"))
    why = f"zca: fitted on all voxels of the {len(cases)} training cases, as the recipe asks"
    return plan.replaced(whitening=fitted, reasons={**plan.reasons, "whitening": why})


def _prepared(case: Case, plan: Plan) -> Tensor:
    with within_memory(case.images[0]):
        return prepare(case.read_image(), plan).image


def plan(
    data: Path | str, /, *, model: str = "unetpp", memory: float | None = None, out: Path | str | None = None
) -> Plan:
    """Show how a data set would be trained on: grid, normalisation, patch, depth and batch, each with its reason.

    Args:
        data: a folder of images in any known layout, or an .npz file.
        model: name of a network, see `ulna models`.
        memory: GB that a training may take.
        out: also write the plan to this YAML file; no other file than a plan is replaced, and no plan of a run.

    Example:
        ulna plan data/nuclei --model unetpp
    """
    if out is not None:
        folder, name = Path(out).parent, Path(out).name
        of_a_run = (folder / RUN_FILE).exists()
        own = {name: lambda path: not of_a_run and {"fingerprint", "reasons"} <= read_yaml(path).keys()}
        check_names(folder, own, "choose another name for --out")
    recipe = recommended(model)
    recipe = recipe.replaced(planning=recipe.planning.replaced(memory_gb=memory))
    dataset = Dataset.from_folder(data)
    report = check_dataset(dataset)
    report.raise_if_bad()
    parts = split(dataset.grouped(report.copies), recipe.training.seed)
    made = make_plan(fingerprint(report, parts.train, dataset.channel_names), recipe, report.labels or Labels())
    need = estimate_training_memory(recipe, made, cases=len(parts.train) + len(parts.val))
    why = f"about {need}; this machine has {machine_memory() / 1e9:.1f} GB"
    made = made.replaced(reasons={**made.reasons, "memory": why})
    if out is not None:
        write_text(Path(out), to_yaml(made))
    return made


def _orientation(data: Fingerprint, reasons: dict[str, str]) -> Literal["RAS"] | None:
    """What images are turned to for the network, and why."""
    if data.orientation is None:
        reasons["orientation"] = "the axes stay as the files store them: not every file says how the patient lies"
        return None
    counts = ", ".join(f"{count} {letters}" for letters, count in sorted(data.orientations.items()))
    sides = "{}, {} and {}".format(*DIRECTIONS)
    reasons["orientation"] = f"RAS: every image is turned so that its axes run from {sides} (stored: {counts})"
    return "RAS"


def _grid(data: Fingerprint, recipe: Recipe, reasons: dict[str, str]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The spacing of the network's grid, and the median size of the images on it."""
    median, unit = tuple(float(s) for s in data.spacing.median), data.unit
    size = tuple(round(n) for n in data.size.median)
    wanted = recipe.planning.spacing
    if wanted is not None:
        if len(wanted) != data.spatial_dims or min(wanted) <= 0:
            raise UsageError(f"planning.spacing={list(wanted)} does not fit {data.spatial_dims}D images")
        reasons["spacing"] = f"{list(wanted)} {unit}: fixed by the recipe"
        return wanted, tuple(max(1, round(n * s / t)) for n, s, t in zip(size, median, wanted, strict=True))
    if unit == "px":
        reasons["spacing"] = "1 px, every image's own grid: the files state no physical size"
        return (1.0,) * len(size), size
    if data.spacing.min == data.spacing.max:
        reasons["spacing"] = f"{_numbers(median)} mm, that of all cases"
        return median, size
    reasons["spacing"] = (
        f"{_numbers(median)} mm, the median; the cases reach from {_numbers(data.spacing.min)} "
        f"to {_numbers(data.spacing.max)} mm"
    )
    return median, size


def _normalization(data: Fingerprint, recipe: Recipe, reasons: dict[str, str]) -> tuple[Normalization, ...]:
    kinds = []
    for channel, name in enumerate(data.channel_names):
        kind = recipe.planning.normalization
        looks_like_ct = name.strip().lower() in ("ct", "cta", "ct scan")
        if kind is None:
            kind = "ct" if looks_like_ct else "zscore"
        if kind == "ct" and data.foreground:
            kinds.append(Normalization(kind="ct", **data.foreground[channel].model_dump()))
        elif kind == "ct" and recipe.planning.normalization is not None:
            raise UsageError("planning.normalization=ct: no training case has any foreground to take its range from")
        elif kind == "rescale":
            eight_bit = data.dtypes == ("uint8",)
            low, high = (0, 255) if eight_bit else (data.intensity[channel].min, data.intensity[channel].max)
            kinds.append(Normalization(kind="rescale", low=low, high=high))
        else:
            kinds.append(Normalization(kind="zscore" if kind == "ct" else kind))
    named_kinds = sorted({k.kind for k in kinds})
    if recipe.planning.normalization is not None:
        why = "fixed by the recipe"
    elif named_kinds == ["ct"]:
        why = "CT numbers mean the same in every scan: clipped to the foreground's 0.5 to 99.5 %, then its mean and deviation"
    else:
        why = "brightness and contrast differ from image to image, so each channel of each image gets mean 0 and deviation 1"
    reasons["normalization"] = f"{', '.join(named_kinds)}: {why}"
    return tuple(kinds)


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
