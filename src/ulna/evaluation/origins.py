"""What a page tells of how its scores came about: of one run, of a cross-validation, or of predictions alone."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ulna.errors import UsageError
from ulna.pages.charts import Chart, several, training
from ulna.pages.numbers import DASH, number, short
from ulna.system.passed_on import Shown, without_places_of
from ulna.system.reading import read_json_object, read_yaml

Tile = tuple[str, str, str]  # name, figure, remark


class Origin(NamedTuple):
    """How scores came about.

    Args:
        model: the network.
        tiles: (name, figure, remark), after those of the scores.
        charts: of the training.
        reasons: (choice, why) of the plan.
        facts: (name, value).
        files: (name, text) of what repeats it.
        folds: a row of texts a fold.
        command: that repeats it.
        version: of the ulna that made it.
    """

    model: str = DASH
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart] = ()
    reasons: Sequence[tuple[str, str]] = ()
    facts: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, str]] = ()
    folds: Sequence[list[str]] = ()
    command: str | None = None
    version: str | None = None


def of_run(run: Path, predictions: Path | None = None) -> Origin:
    """Of a run folder; what is missing in it shows as a dash.

    Args:
        run: the folder.
        predictions: where the masks lie that were scored, if not only in memory.

    Raises:
        UsageError: if a file of it is damaged.
    """
    summary, plan, recipe = _json(run / "summary.json"), _yaml(run / "plan.yaml"), _text(run / "recipe.yaml")
    shown = without_places_of(_yaml(run / "recipe.yaml") if recipe else {})
    best = summary.get("best_epoch")
    epochs = ("Epochs", str(summary.get("epochs") or DASH), f"best: {best}" if best is not None else "")
    extra = [("Validation IoU", number(summary.get("val_iou"), 3))] if summary.get("monitor") == "iou" else []
    lie = (
        [("Predictions", predictions.resolve().name)] if predictions is not None else []
    )  # names alone: pages are passed on
    return Origin(
        model=shown(str(summary.get("model") or DASH)),
        tiles=[epochs, *_cost(summary, shown)],
        charts=training(_epochs(run), str(summary.get("monitor", "dice"))),
        reasons=[(str(name).replace("_", " "), shown(str(why))) for name, why in (plan.get("reasons") or {}).items()],
        facts=[
            ("Data", str(summary.get("data") or DASH)),
            ("Run", run.resolve().name),
            *lie,
            ("Validation Dice", number(summary.get("val_dice"), 3)),
            *extra,
            *_circumstances(summary),
            ("Split hash", str(summary.get("split_hash") or DASH)),
            _versions(summary),
        ],
        files=[("recipe", shown(recipe)), ("plan", shown(_text(run / "plan.yaml")))],
        command=summary.get("command"),
        version=_mapping(summary.get("versions")).get("ulna"),
    )


def of_folds(folder: Path) -> Origin:
    """Of a cross-validation, which has `folds.yaml` and a run folder a fold.

    Raises:
        UsageError: if a file of it is damaged.
    """
    summary, recipe = _json(folder / "summary.json"), _text(folder / "folds.yaml")
    shown = without_places_of(_yaml(folder / "folds.yaml"))
    folds = [_mapping(fold) for fold in summary.get("folds", ())]
    curves = {str(fold.get("run")): _epochs(folder / Path(str(fold.get("run"))).name) for fold in folds}
    return Origin(
        model=shown(str(summary.get("model") or DASH)),
        tiles=[("Folds", str(len(folds)), "a training each"), *_cost(summary, shown)],
        charts=several("Validation Dice of every fold", curves),
        facts=[
            ("Data", str(summary.get("data") or DASH)),
            ("Folder", folder.resolve().name),
            ("Scored", str(summary.get("note") or DASH)),
            *_circumstances(summary),
            _versions(summary),
        ],
        files=[("recipe", shown(recipe))],
        folds=[
            [
                str(fold.get("run")),
                str(fold.get("cases", DASH)),
                number(fold.get("dice"), 3),
                number(fold.get("val_dice"), 3),
                str(fold.get("epochs", DASH)),
                str(fold.get("best_epoch", DASH)),
            ]
            for fold in folds
        ],
        command=summary.get("command"),
        version=_mapping(summary.get("versions")).get("ulna"),
    )


def of_predictions(about: Mapping[str, Any], predictions: Path, labels: Path, version: str) -> Origin:
    """Of masks in a folder, with what their predict.json says, if there is one.

    Args:
        about: what predict.json says; empty for masks of others.
        predictions: the folder.
        labels: the references.
        version: of the ulna that scores them.
    """
    options, shown = _mapping(about.get("options")), without_places_of(about)
    chosen = [f"{name} {value}" for name in ("level", "split") if (value := options.get(name)) is not None]
    chosen += [name for name in ("tta",) if options.get(name)]
    known = [
        ("Model", shown(str(about.get("model") or DASH))),
        ("Runs", ", ".join(map(str, about.get("runs", ()))) or DASH),
        ("Options", ", ".join(chosen) or "none"),
    ]
    return Origin(
        model=shown(str(about.get("model") or "")),
        facts=[
            ("Predictions", predictions.resolve().name),
            ("References", labels.resolve().name),
            *(known if about.get("model") else []),
            ("Scored with", f"ulna {version}"),
        ],
        version=version,
    )


def _cost(summary: Mapping[str, Any], shown: Shown) -> list[Tile]:
    seconds = summary.get("wall_seconds")
    minutes = seconds / 60 if isinstance(seconds, int | float) else None
    return [
        ("Minutes", number(minutes, 1), "of training"),
        ("Parameters", short(summary.get("parameters")), shown(str(summary.get("model") or ""))),
    ]


def _circumstances(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory = summary.get("peak_memory_mb")
    return [
        ("Device", str(summary.get("device") or DASH)),
        ("Peak memory", f"{number(float(memory), 0)} MB" if isinstance(memory, int | float) else DASH),
        ("Seed", str(summary.get("seed", DASH))),
    ]


def _versions(summary: Mapping[str, Any]) -> tuple[str, str]:
    versions = _mapping(summary.get("versions"))
    return "Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or DASH


def _epochs(run: Path) -> list[dict[str, float]]:
    with io.StringIO(_text(run / "metrics.csv")) as file:
        return [{key: _value(text) for key, text in row.items() if key} for row in csv.DictReader(file)]


def _value(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(path: Path) -> str:
    """The file's text; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); restore it") from None


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.exists() else {}
