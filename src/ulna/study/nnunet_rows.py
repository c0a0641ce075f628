"""Rows of nnU-Net's in a study: what must be so for them, and what the study leaves for their processes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ulna.errors import UsageError, counted
from ulna.recipe import Plan, Recipe, Split, Training, to_yaml
from ulna.study.nnunet import KIND, SHARED, STEPS, find, is_nnunet, read_row, trained_epochs
from ulna.study.variants import Settled, Variant, settings_of
from ulna.system.files import write_text
from ulna.system.outputs import make_folder

OWN_WAY = (
    "plans, augments, trains and predicts (with mirrored copies) as it does by itself, in float32 or float16 as its device "
    "has it, without a seed; the split and the scoring are those of all"
)
_OWN_TRAINERS = (2, 8)  # the version that reads nnUNet_extTrainer


class Rows(NamedTuple):
    """Those of a study.

    Args:
        variants: that are trained.
        absent: name -> why it is not there.
    """

    variants: list[Variant]
    absent: dict[str, str]


def split_names(names: Sequence[str], *, varied: bool = False) -> tuple[list[str], list[str]]:
    """Names of networks of ulna's, and of rows of nnU-Net's.

    Raises:
        UsageError: if a row is not known, stands twice, is to be varied, or stands alone: the others say what is trained on.
    """
    rows = [name for name in names if is_nnunet(name)]
    for name in rows:
        read_row(name)
        if rows.count(name) > 1:
            raise UsageError(f"{name} is named twice; name every network once")
    if rows and varied:
        raise UsageError(f"--vary: {rows[0]} has no fields of ulna's that could be varied; compare it without --vary")
    own = [name for name in names if not is_nnunet(name)]
    if rows and not own:
        raise UsageError(f"--models {','.join(rows)}: name a network of ulna's beside {KIND}, such as nnunet")
    return own, rows


def nnunet_rows(names: Sequence[str], settled: Settled) -> Rows:
    """The rows as variants of the study, as long as its first network is trained, and scored as that is.

    Raises:
        UsageError: if nnU-Net cannot be trained on these data.
    """
    if not names:
        return Rows([], {})
    _check_data(names, settled.plan)
    found = find()
    if isinstance(found, str):
        return Rows([], dict.fromkeys(names, found))
    base, planned = settled.variants[0].recipe, settled.planned[0].recipe
    variants: list[Variant] = []
    absent: dict[str, str] = {}
    version = found.version()
    for name in names:
        own, steps = read_row(name).epochs, read_row(name).steps
        if steps < STEPS and _is_before(version, _OWN_TRAINERS):
            needed = ".".join(map(str, _OWN_TRAINERS))
            absent[name] = (
                f"less than an epoch needs nnU-Net {needed}, which takes trainers of others, and this is {version}"
            )
            continue
        if own is None and planned.training.max_hours is not None:
            raise UsageError(
                f"{name}: no hours limit nnU-Net; say for how many epochs it is trained, such as {name}/50"
            )
        wanted = planned.training.most_epochs if own is None else own
        epochs = trained_epochs(wanted)
        length = f"{counted(epochs, 'epoch')} of {counted(steps, 'step')}"
        notes = [f"nnU-Net {version}, {length}: it {OWN_WAY}"]
        if steps < STEPS:
            notes.append(f"{counted(steps, 'step')} in place of the {STEPS} of an epoch of its own")
        if epochs != wanted:
            notes.append(f"{counted(epochs, 'epoch')}, not {wanted}: nnU-Net has no trainer of so many")
        if planned.training.max_hours is not None:
            notes.append("hours do not limit it; its time stands in the table")
        recipe = Recipe(model=name, training=Training(epochs=epochs), evaluation=base.evaluation, classes=base.classes)
        variants.append(Variant(name, recipe, tuple(notes)))
    return Rows(variants, absent)


def _is_before(version: str, least: tuple[int, int]) -> bool:
    """Whether a version is known, and an earlier one."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < least


def settings_of_rows(rows: Rows) -> dict[str, dict[str, Any]]:
    """What must stay as it is for a study that goes on, as of the other networks."""
    return {
        "recipes": {row.name: settings_of(row.recipe) for row in rows.variants},
        "architectures": {row.name: {"epochs": row.recipe.training.epochs} for row in rows.variants},
    }


def leave_for_processes(out: Path, plan: Plan, splits: Sequence[Split], rows: Rows) -> None:
    """Write what the process of a row reads beside its recipe."""
    if not rows.variants:
        return
    make_folder(out / SHARED)
    write_text(out / SHARED / "plan.yaml", to_yaml(plan.replaced(recipe=None)))
    write_text(out / SHARED / "splits.json", json.dumps([split.model_dump(mode="json") for split in splits]))


def not_there(absent: Mapping[str, str]) -> list[str]:
    """Footnotes."""
    return [f"{name}: not there, {why}" for name, why in absent.items()]


def _check_data(names: Sequence[str], plan: Plan) -> None:
    flat = [name for name in names if read_row(name).configuration != "2d" and plan.image_dims == 2]
    if flat:
        raise UsageError(f"{flat[0]}: these images are 2D; name nnunetv2:2d")
    if plan.labels.multilabel:
        raise UsageError(f"{names[0]}: these classes overlap, and are not passed on to nnU-Net; leave it out")
