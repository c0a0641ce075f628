"""What study.json holds: the settings that must stay as they are for a study that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ulna.data.layout.dataset import split_hash
from ulna.data.quality.check import Report
from ulna.errors import UsageError, brief
from ulna.recipe import PLAN_FORMAT, Recipe, Split, parse
from ulna.study.budget import Budget
from ulna.study.variants import Settled, Variant, settings_of, sizes_of
from ulna.system.outputs import check_free
from ulna.system.reading import parse_yaml, read_json_object
from ulna.system.threads import MOST_THREADS, choose_threads
from ulna.training.checkpoint import TRAINING_FORMAT

STUDY_FILE = "study.json"
_EARLIER = 1  # voxels: versions that did not say it had all networks predict images in one piece


def settings_of_study(
    settled: Settled,
    splits: Sequence[Split],
    report: Report,
    size: Budget | None,
    variants: Sequence[Variant],
    folds: int | None,
) -> dict[str, Any]:
    """What must stay as it is for a study that goes on; networks and seeds may be added."""
    return {
        "data": settled.plan.fingerprint.digest,
        "splits": [split_hash(split) for split in splits],
        "folds": folds,
        "match": None if size is None else str(size),
        "format": PLAN_FORMAT,
        "training_format": TRAINING_FORMAT,
        "plan": sizes_of(settled),
        # with the length in numbers, which depends on the kind of device where it is left open
        "recipes": {
            variant.name: settings_of(variant.recipe.replaced(training=planned.recipe.training))
            for variant, planned in zip(variants, settled.planned, strict=True)
        },
        "architectures": {v.name: v.recipe.architecture.model_dump(mode="json") for v in settled.variants},
        "whole": {
            variant.name: planned.plan.whole_image_limit
            for variant, planned in zip(variants, settled.planned, strict=True)
            if not planned.network.head.sparse  # points have always been read in windows
        },
    }


def stored_study(out: Path) -> dict[str, Any] | None:
    path = out / STUDY_FILE
    if not path.exists():
        check_free(out, what="holds something else than a study")
        return None
    try:
        values = read_json_object(path)
        checked = {
            "format": int(values.get("format", 1)),
            "training_format": int(values.get("training_format", 1)),
            "plan": _checked_sizes(values["plan"]),
            "recipes": {name: str(text) for name, text in values["recipes"].items()},
            "architectures": {name: dict(fields) for name, fields in values["architectures"].items()},
            "whole": {name: int(limit) for name, limit in values.get("whole", {}).items()},
        }
        if values.get("threads") is not None:  # earlier versions did not say it
            checked["threads"] = _checked_threads(values["threads"])
        return {**checked, **{name: values[name] for name in ("data", "splits", "folds", "match")}}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: damaged ({brief(str(error))}); restore it, or choose another --out") from None


def _checked_threads(number: Any) -> int:
    if type(number) is not int or not 1 <= number <= MOST_THREADS:
        raise ValueError(f"threads are {brief(number)}")
    return number


def study_threads(out: Path, before: Mapping[str, Any] | None, wanted: int | None, at_once: int) -> int:
    """Of each training: those the study began with, else those wanted, else what is free, shared among those at once."""
    began = None if before is None else before.get("threads")
    if began is not None:
        if wanted not in (None, began):
            raise UsageError(
                f"{out}: was begun with --threads {began}, not {wanted}; leave it out, or choose another --out"
            )
        return int(began)
    return wanted or max(1, choose_threads() // at_once)


def _checked_sizes(shared: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {"patch": [int(side) for side in shared["patch"]], "batch": int(shared["batch"])}
    return {**sizes, "beside": [_checked_sizes(one) for one in shared["beside"]]} if "beside" in shared else sizes


def check_format(folder: Path, stored: Mapping[str, Any] | None, remedy: str) -> None:
    if stored is not None and stored["format"] != PLAN_FORMAT:
        raise UsageError(
            f"{folder}: begun by an earlier ulna (plan format {stored['format']}, now {PLAN_FORMAT}), whose networks saw "
            f"images along the axes of their files; one table does not mix them: {remedy}"
        )
    if stored is not None and stored["training_format"] != TRAINING_FORMAT:
        raise UsageError(
            f"{folder}: begun by another version of ulna (training format {stored['training_format']}, now "
            f"{TRAINING_FORMAT}), which changes training samples in other ways; one table does not mix them: {remedy}"
        )


def check_same(out: Path, before: Mapping[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix trainings that were made with other settings; what was there before stays listed."""
    check_format(out, before, "call the same command with another --out")
    said = {"data": "the data", "splits": "the split", "folds": "--folds", "match": "--match"}
    differing = [
        f"{what} ({before[key]} there, {now[key]} now)" for key, what in said.items() if before[key] != now[key]
    ]
    before = {**before, "recipes": {name: _under_names_of_today(text) for name, text in before["recipes"].items()}}
    for kind in ("recipes", "architectures"):
        both = sorted(before[kind].keys() & now[kind].keys())
        differing += [
            f"the {kind[:-1]} of {name}: {_first_difference(before[kind][name], now[kind][name])}"
            for name in both
            if before[kind][name] != now[kind][name]
        ]
        now[kind] = {**before[kind], **now[kind]}
    differing += [
        f"{name} predicts images larger than a patch in windows now, in one piece there"
        for name, limit in now["whole"].items()
        if name in before["recipes"] and not limit and before["whole"].get(name, _EARLIER)
    ]
    now["whole"] = {**before["whole"], **now["whole"]}
    if differing:
        raise UsageError(f"{out}: a study with other settings: {'; '.join(sorted(differing))}; choose another --out")


def _under_names_of_today(settings: str) -> str:
    """The settings of a study that an earlier version began, as this one writes them."""
    try:
        return settings_of(parse(Recipe, parse_yaml(settings, STUDY_FILE)))
    except UsageError:  # of fields that are gone: they differ
        return settings


def _first_difference(before: Any, now: Any) -> str:
    if isinstance(before, str):
        lines = zip_longest(before.splitlines(), now.splitlines(), fillvalue="nothing")
        return next((f"{a.strip()} there, {b.strip()} now" for a, b in lines if a != b), "")
    return next((f"{key} is {before.get(key)} there, {now[key]} now" for key in now if before.get(key) != now[key]), "")
