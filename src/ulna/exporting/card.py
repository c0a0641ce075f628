"""The model card: what a network was trained on, how it scores, where it ends, and under which licence it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulna.errors import UsageError, counted
from ulna.inference.segmenter import read_split
from ulna.recipe import Plan, Recipe
from ulna.system.passed_on import without_place
from ulna.system.reading import read_json_object
from ulna.version import version

UNSTATED = "not stated; ask who trained it"
MEASURES = ("dice", "iou", "nsd", "hd95")


def card_of(runs: Sequence[Path], plan: Plan, recipe: Recipe, licence: str | None) -> dict[str, Any]:
    """The card of a run, or of several that predict together; plain values.

    Args:
        runs: run folders; the scores are those of each.
        plan: of the first.
        recipe: of the first.
        licence: of the weights, as who exports them says.
    """
    told = plan.fingerprint
    summaries = [_summary(run) for run in runs]
    first = summaries[0]
    return {
        "model": recipe.model or "network",
        "networks": len(runs),
        "structures": list(plan.labels.foreground),
        "overlapping": plan.labels.multilabel,
        "licence": licence or UNSTATED,
        "images": {
            "dimensions": plan.image_dims,
            "channels": list(plan.channel_names),
            "orientation": plan.orientation or "as stored",
            "grid": f"{_extent(plan.spacing or told.spacing.median)} {plan.unit}",
        },
        "trained_on": {
            "data": first.get("data") or "not known",
            "data_fingerprint": first.get("data_fingerprint") or told.digest or "not known",
            **_counts(runs[0]),
            **({} if recipe.training.init is None else {"begun_with": without_place(recipe.training.init)}),
            "size": f"{_extent(told.size.min)} to {_extent(told.size.max)}, median {_extent(told.size.median)}",
            "spacing": f"{_extent(told.spacing.min)} to {_extent(told.spacing.max)} {told.unit}",
            **({"intensity": [f"{r.min:g} to {r.max:g}" for r in told.intensity]} if told.intensity else {}),
        },
        "scores": _scores(runs, summaries),
        "limits": limits_of(plan, summaries),
        "versions": {"ulna": version("ulna"), **_versions(first)},
    }


def limits_of(plan: Plan, summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What holds of every run; a line more where one of them was not scored on test cases."""
    unit = "images that state their spacing in mm" if plan.unit == "mm" else "images pixel by pixel"
    said = [
        "Research use only; not a medical device.",
        f"Reads {plan.image_dims}D images with {counted(plan.in_channels, 'channel')}, {unit}.",
        "Images unlike those of the training (another scanner, protocol, organ or species) may be segmented badly.",
    ]
    if any(summary.get("evaluated_on") != "test" for summary in summaries):
        said.append("Not scored on cases that were kept aside until the end.")
    return said


def page(card: Mapping[str, Any], title: str) -> str:
    """The card as a page in Markdown."""
    lines = [f"# {title}", ""]
    for name, value in card.items():
        heading = name.replace("_", " ")
        if isinstance(value, Mapping):
            lines += ["", f"## {heading.capitalize()}", "", *_items(value, 0)]
        elif isinstance(value, list) and name == "limits":
            lines += ["", "## Limits", "", *(f"- {one}" for one in value)]
        else:
            lines.append(f"- {heading}: {_text(value)}")
    return "\n".join(lines) + "\n"


def _items(values: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for name, value in values.items():
        start = f"{'  ' * depth}- {name.replace('_', ' ')}:"
        lines += [start, *_items(value, depth + 1)] if isinstance(value, Mapping) else [f"{start} {_text(value)}"]
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summary(run: Path) -> dict[str, Any]:
    """summary.json, or nothing where the training has not ended."""
    path = run / "summary.json"
    return read_json_object(path) if path.exists() else {}


def _counts(run: Path) -> dict[str, int]:
    try:
        split = read_split(run)
    except UsageError:
        return {}
    return {"training_cases": len(split.train), "validation_cases": len(split.val), "test_cases": len(split.test)}


def _scores(runs: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the cases that were kept aside, with intervals."""
    found: dict[str, Any] = {}
    for run, summary in zip(runs, summaries, strict=True):
        test = summary.get("test")
        mean = test.get("mean") if isinstance(test, dict) else None
        scores: dict[str, Any] = {"evaluated_on": summary.get("evaluated_on") or "nothing yet"}
        if isinstance(test, dict) and isinstance(mean, dict):
            scores["cases"] = test.get("cases")
            scores |= {name: _interval(mean[name]) for name in MEASURES if name in mean}
            classes = test.get("classes")
            if isinstance(classes, dict) and len(classes) > 1:
                scores["dice_by_structure"] = {
                    name: _interval(one["dice"]) for name, one in classes.items() if "dice" in one
                }
        found[run.name] = scores
    return found if len(found) > 1 else next(iter(found.values()))


def _interval(values: Any) -> str:
    """A mean with its 95 % interval, as summary.json holds it."""
    try:
        return f"{values['mean']:.4f} ({values['low']:.4f} to {values['high']:.4f}, n = {values['n']})"
    except (KeyError, TypeError, ValueError):
        return "not known"


def _versions(summary: Mapping[str, Any]) -> dict[str, str]:
    versions = summary.get("versions")
    return {f"trained_with_{name}": str(one) for name, one in versions.items()} if isinstance(versions, dict) else {}


def _extent(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def as_json(card: Mapping[str, Any]) -> bytes:
    """The card as its member of an exported file."""
    return json.dumps(card, indent=1, allow_nan=False).encode()
