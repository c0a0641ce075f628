"""One page about one run: figures, curves, best and worst cases, and how to repeat it.

The page is a single file without scripts and without anything to fetch; a content policy in its head holds it to that.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from ulna.errors import UsageError
from ulna.evaluation import figures
from ulna.evaluation.embedding import address, css, embed
from ulna.evaluation.pages import page
from ulna.evaluation.views import flat
from ulna.system.files import write_text
from ulna.system.reading import read_json_object, read_yaml

DASH = "–"
SHOWN = 3  # best cases, and as many worst
PICTURE = 256  # pixels along the longer side, about
MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "ppv": "PPV",
    "sensitivity": "Sensitivity",
    "hd95": "HD95",
    "assd": "ASSD",
    "nsd": "NSD",
}


class ReportCase(NamedTuple):
    """A case to draw: image (C, *S), reference and prediction (*S) - (K, *S) if classes overlap - and its mean Dice."""

    case: str
    image: NDArray[Any]
    reference: NDArray[Any]
    prediction: NDArray[Any]
    dice: float


class Evaluated(Protocol):
    """What the page reads of an evaluation."""

    @property
    def summary(self) -> Mapping[str, Any]: ...


class Cell(NamedTuple):
    """A mean and its interval, as text."""

    mean: str
    interval: str


class Section(NamedTuple):
    """What else is shown, beside the run that the page is about.

    Args:
        title: of the section.
        words: paragraphs.
        cases: all are drawn, in this order.
        command: that makes it.
    """

    title: str
    words: tuple[str, ...]
    cases: tuple[ReportCase, ...]
    command: str


class Drawn(NamedTuple):
    """A case as it stands on the page: (caption, data address) for every picture."""

    case: str
    dice: str
    pictures: list[tuple[str, str]]


def write_report(
    run: Path,
    predictions: Path,
    evaluation: Evaluated,
    cases: Sequence[ReportCase],
    out: Path,
    *,
    synthetic: bool,
    title: str,
    section: Section | None = None,
) -> Path:
    """Write the page about a run, self-contained and readable offline.

    Args:
        run: the run folder; what is missing in it shows as a dash.
        predictions: where the predictions lie.
        evaluation: their scores, from `evaluate`.
        cases: to choose the best and the worst from.
        out: the HTML file to write.
        synthetic: whether to say at the top that the data are made up.
        title: of the page, the name of the data.
        section: to show behind the cases; None for none.

    Raises:
        UsageError: if a file of the run folder is damaged, or `out` cannot be written.
    """
    summary, plan = _json(run / "summary.json"), _yaml(run / "plan.yaml")
    scores = evaluation.summary
    values = {
        "title": title,
        "synthetic": synthetic,
        "model": summary.get("model") or DASH,
        "tiles": _tiles(scores, summary),
        "interval_note": scores.get("interval_note", ""),
        "missing": [str(case) for case in scores.get("missing", ())],
        "measures": _headings(scores),
        "table": _table(scores),
        "unit": scores.get("unit", "px"),
        "tolerance": f"{_brief(scores.get('tolerance'))} {scores.get('tolerance_unit', scores.get('unit', 'px'))}",
        "curves": _curves(run / "metrics.csv", summary.get("monitor", "dice")),
        "groups": _groups(cases),
        "classes": _classes(scores),
        "section": section,
        "section_cases": [_draw(case) for case in section.cases] if section else [],
        "errors": [(meaning, css(colour)) for meaning, colour in figures.LEGEND],
        "volumes": any(case.image.ndim == 4 for case in cases),
        "reasons": _reasons(plan),
        "facts": _facts(summary, run, predictions),
        "command": summary.get("command"),
        "files": [(name, _text(run / f"{name}.yaml")) for name in ("recipe", "plan")],
        "version": (summary.get("versions") or {}).get("ulna"),
    }
    write_text(out, page("ulna.evaluation", "report.html").render(values))
    return out


def cases_of_pictures(data: Path, predictions: Path, rows: Sequence[Mapping[str, Any]]) -> list[ReportCase]:
    """What the page draws of PNG files: pairs of images and labels in `data`, with the Dice that an evaluation gave them."""
    cases = []
    for row in rows:
        name = f"{row['case']}.png"
        image, reference, prediction = (
            _pixels(folder / name) for folder in (data / "images", data / "labels", predictions)
        )
        cases.append(ReportCase(row["case"], np.moveaxis(image, -1, 0), reference, prediction, row["dice"]))
    return cases


def _pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def _tiles(scores: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, remark)."""
    mean = scores.get("mean", {})
    dice, iou = (_cell(mean.get(name), 3) for name in ("dice", "iou"))
    missing, best = len(scores.get("missing", ())), summary.get("best_epoch")
    seconds = summary.get("wall_seconds")
    minutes = seconds / 60 if isinstance(seconds, int | float) else None
    return [
        ("Mean Dice", dice.mean, f"95 %: {dice.interval}" if dice.interval else ""),
        ("Mean IoU", iou.mean, iou.interval),
        ("Cases", str(scores.get("cases", DASH)), f"{missing} without prediction" if missing else "evaluated"),
        ("Epochs", str(summary.get("epochs") or DASH), f"best: {best}" if best is not None else ""),
        ("Minutes", _number(minutes, 1), "of training"),
        ("Parameters", _short(summary.get("parameters")), summary.get("model") or ""),
    ]


def _headings(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    unit = scores.get("unit", "px")
    tolerance = f"{_brief(scores.get('tolerance'))} {scores.get('tolerance_unit', unit)}"
    remark = {"hd95": unit, "assd": unit, "nsd": f"≤ {tolerance}"}
    return [*((name, remark.get(key, "")) for key, name in MEASURES.items()), ("n", ""), ("Both empty", "")]


def _table(scores: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    rows = dict(scores.get("classes", {}))
    lines = [(str(name), _cells(measures)) for name, measures in rows.items()]
    return [*lines, ("Mean", _cells(scores.get("mean", {})))] if len(rows) > 1 else lines


def _cells(measures: Mapping[str, Any]) -> list[Cell]:
    cells = [_cell(measures.get(key), 2 if key in ("hd95", "assd") else 3) for key in MEASURES]
    return [*cells, *(Cell(_number(measures.get(key), 0), "") for key in ("n", "both_empty"))]


def _cell(value: Mapping[str, Any] | None, digits: int) -> Cell:
    value = value or {}
    mean, low, high = (_number(value.get(key), digits) for key in ("mean", "low", "high"))
    return Cell(mean, "" if DASH in (low, high) else f"{low} {DASH} {high}")


def _number(value: Any, digits: int) -> str:
    """At most `digits` decimals for whole numbers, exactly as many for others; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return DASH
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _brief(value: Any) -> str:
    """A number without idle zeros: 2, 1.5."""
    return f"{value:g}" if isinstance(value, int | float) else DASH


def _short(count: Any) -> str:
    """A count as people say it: 2.26 M."""
    if not isinstance(count, int | float):
        return DASH
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _curves(path: Path, monitor: str) -> dict[str, str] | None:
    """The curves for light and for dark pages."""
    with io.StringIO(_text(path)) as file:
        rows = [{key: _value(text) for key, text in row.items() if key} for row in csv.DictReader(file)]
    if not rows:
        return None
    with TemporaryDirectory() as folder:
        drawn = {
            name: figures.curves(rows, Path(folder, name), monitor=monitor, dark=name == "dark")
            for name in ("light", "dark")
        }
        return {name: address(file.read_bytes(), "png") for name, file in drawn.items()}


def _value(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _groups(cases: Sequence[ReportCase]) -> list[tuple[str, list[Drawn]]]:
    """(heading, cases): the lowest Dice first, for failures teach more."""
    ranked = sorted((case for case in cases if math.isfinite(case.dice)), key=lambda case: (case.dice, case.case))
    if len(ranked) < 2:
        return [("The case", [_draw(case) for case in ranked])] if ranked else []
    shown = min(SHOWN, len(ranked) // 2)
    worst, best = ranked[:shown], ranked[: -shown - 1 : -1]
    return [("Lowest Dice", [_draw(case) for case in worst]), ("Highest Dice", [_draw(case) for case in best])]


def _draw(case: ReportCase) -> Drawn:
    shown = flat(case.image, case.reference, case.prediction)
    image, reference, prediction = _resize(shown[0], smooth=True), _resize(shown[1]), _resize(shown[2])
    pictures = figures.comparison(image, prediction, reference)
    return Drawn(case.case, _number(float(case.dice), 3), [(caption, embed(picture)) for caption, picture in pictures])


def _resize(array: NDArray[Any], *, smooth: bool = False) -> NDArray[Any]:
    """(..., H, W) near `PICTURE` by a whole factor; before lines are drawn, so that they are as thin on any image."""
    height, width = array.shape[-2:]
    if max(height, width) > 1.5 * PICTURE:
        step = math.ceil(max(height, width) / (1.5 * PICTURE))
        source = uniform_filter(array, step, axes=(-2, -1)) if smooth else array
        return source[..., step // 2 :: step, step // 2 :: step]
    factor = max(1, round(PICTURE / max(height, width)))
    return array.repeat(factor, -2).repeat(factor, -1)


def _classes(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(class, colour of its outline)."""
    colours = figures.CLASS_COLOURS
    return [(str(name), css(colours[k % len(colours)])) for k, name in enumerate(scores.get("classes", {}))]


def _reasons(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(choice, why)."""
    return [(str(name).replace("_", " "), str(why)) for name, why in (plan.get("reasons") or {}).items()]


def _facts(summary: Mapping[str, Any], run: Path, predictions: Path) -> list[tuple[str, str]]:
    versions = summary.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    memory = summary.get("peak_memory_mb")
    return [
        ("Data", str(summary.get("data") or DASH)),
        ("Run", run.resolve().name),  # names alone: the page is passed on, a path tells who made it
        ("Predictions", predictions.resolve().name),
        ("Validation Dice", _number(summary.get("val_dice"), 3)),
        *([("Validation IoU", _number(summary.get("val_iou"), 3))] if summary.get("monitor") == "iou" else []),
        ("Device", str(summary.get("device") or DASH)),
        ("Peak memory", f"{_number(float(memory), 0)} MB" if isinstance(memory, int | float) else DASH),
        ("Seed", str(summary.get("seed", DASH))),
        ("Split hash", str(summary.get("split_hash") or DASH)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or DASH),
    ]


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
