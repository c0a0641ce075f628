"""`--resume` with the flags of the command that began a run: accepted where they agree with it, refused where they do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulna.errors import UsageError, brief, counted, listed, printable
from ulna.inference.fold_runs import fold_runs, is_cross_validation
from ulna.inference.segmenter import read_split
from ulna.networks.foreign import permit_named, permit_stored
from ulna.planning.choosing import choose
from ulna.planning.fitting import recipe_of
from ulna.planning.length import FIELDS, resolve_length
from ulna.planning.plan import planned_by
from ulna.recipe import Plan, Recipe, from_yaml, renamed_path, stated
from ulna.system.device import find_device
from ulna.system.outputs import FOLDS_FILE, RUN_FILE
from ulna.training.checkpoint import CHECKPOINTS, stored_threads

LIMITS = ("epochs", "max_hours")  # what --resume may change
# what a run has in numbers alone, and where it has them; those of a budget are `FIELDS`
PLANNED: dict[tuple[str, ...], Sequence[tuple[str, ...]]] = {
    ("training", "budget"): (),
    ("planning", "parameters"): (("architecture", "channels"),),
}
TRAINING = ("seed", "fold", "folds", "split", "init")  # flags that are fields of the section `training`


def permit_code(folder: Path, *, model: str | None, allow_code: bool) -> None:
    """Let the code of a run's network be executed, where a person allows it or names it again.

    Raises:
        UsageError: if the network is code, and neither is so.
    """
    if model is not None:
        permit_named(model)
    stored = from_yaml(Recipe, folder / (FOLDS_FILE if is_cross_validation(folder) else RUN_FILE))
    permit_stored(stored.architecture.foreign, folder, allow_code=allow_code)


def check_same_command(folder: Path, flags: Mapping[str, Any], *, limited: bool = False) -> None:
    """Refuse flags that differ from what a run began with; what was not stated then or now is not compared.

    Args:
        folder: of the run, or of a cross-validation.
        flags: of `train`, by their names; None, or an empty list, where they were not given.
        limited: with --max-ram, which lowers planning.memory_gb by what it leaves room for.

    Raises:
        UsageError: with everything that differs.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != [] and value != ()}
    if not given.keys() - {*LIMITS}:
        return
    folds = is_cross_validation(folder)
    stored = from_yaml(Recipe, folder / (FOLDS_FILE if folds else RUN_FILE))
    plan = None if folds else from_yaml(Plan, folder / "plan.yaml")
    began = from_yaml(Plan, Path(given["plan"])) if "plan" in given else None
    wanted = _wanted(given, stored, began)
    if plan is not None:  # with what planning makes of it: widths of every level, a length in numbers
        wanted, _ = resolve_length(wanted, find_device(), slices=plan.slices is not None)
        try:
            wanted = planned_by(plan, wanted, read_split(folder)).recipe
        except UsageError as error:
            raise _other_settings(folder, str(error).splitlines()[0]) from None
    paths: Iterable[tuple[str, ...]] = _paths(given, began)
    if plan is not None:
        paths = [place for path in paths for place in PLANNED.get(path, (path,))]
    if limited:
        paths = [path for path in paths if path != ("planning", "memory_gb")]
    differing = list(_differing(stored, wanted, paths))
    if began is not None and (plan is None or _bare(began) != _bare(plan)):
        differing.append(f"--plan {given['plan']} is not the plan that it was begun with")
    if differing:
        raise _other_settings(folder, listed(differing, 6))


def _other_settings(folder: Path, what: str) -> UsageError:
    return UsageError(
        f"{printable(folder)}: was begun with other settings ({what}); leave them out to go on with it, "
        "or train again into another folder"
    )


def same_threads(folder: Path, wanted: int | None) -> int | None:
    """The threads that a run goes on with: those it began with, or those wanted where it has no checkpoint yet.

    Raises:
        UsageError: if others are wanted: it would not go on exactly.
    """
    runs = fold_runs(folder) if is_cross_validation(folder) else [folder]
    began = next((number for run in runs if (number := stored_threads(run / CHECKPOINTS))), None)
    if began is not None and wanted not in (None, began):
        raise UsageError(
            f"--threads {wanted}: {printable(folder)} computes with {counted(began, 'thread')}, and goes on exactly only "
            "with as many; leave --threads out"
        )
    return began or wanted


def _wanted(given: Mapping[str, Any], stored: Recipe, began: Plan | None) -> Recipe:
    """The recipe of the command, as if it began a run; the network is the run's where the command names none."""
    named = given.get("model")
    if named is None and began is None and not {"model", "architecture"} & stated(given.get("recipe")).keys():
        named = stored.model
    names = ("recipe", "budget", "set", *LIMITS, *TRAINING)
    planned = None if began is None else recipe_of(began)
    return choose(model=named, planned=planned, **{"recipe": None, **{n: given[n] for n in names if n in given}})


def _paths(given: Mapping[str, Any], began: Plan | None) -> Iterator[tuple[str, ...]]:
    """The fields that the flags state: a section and a field of it, or a field of the recipe itself."""
    if "model" in given or began is not None:
        yield ("model",)
    for name in TRAINING:
        if name in given:
            yield "training", name
    limits = {name for name in LIMITS if name in given}  # of the run from now on
    if "budget" in given:
        yield from (("training", name) for name in ("budget", *FIELDS) if name not in limits)
    for section, fields in stated(given.get("recipe")).items():
        if isinstance(fields, Mapping):
            yield from ((section, name) for name in fields)
        elif "model" not in given:
            yield (section,)
    changes: Sequence[str] = [given["set"]] if isinstance(given.get("set"), str) else given.get("set", ())
    for change in changes:
        key, _, value = change.partition("=")
        yield tuple(renamed_path(key.strip(), value).split(".")[:2])


def _differing(stored: Recipe, wanted: Recipe, paths: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for path in dict.fromkeys(paths):
        before, now = _at(stored, path), _at(wanted, path)
        if before != now:
            yield f"{'.'.join(path)} is {brief(_plain(before))} there, {brief(_plain(now))} now"


def _at(recipe: Recipe, path: tuple[str, ...]) -> Any:
    """A field by its path; None where a former name leads nowhere."""
    value: Any = recipe
    for name in path:
        value = getattr(value, name, None)
    return value


def _plain(value: Any) -> Any:
    """As a recipe file has it."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _bare(plan: Plan) -> Plan:
    """Without what is told of the data of a run alone."""
    return plan.replaced(recipe=None, reasons={}, colour=False, mask_values=None)
