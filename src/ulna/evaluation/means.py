"""Rows of measures to a summary: means over cases with their intervals, for every class and over all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ulna.data.volume import Volume
from ulna.evaluation.intervals import SOME_CASES, interval_note, mean_interval
from ulna.evaluation.metrics import FURTHER, MEASURES, average
from ulna.recipe import Labels

# NSD: how far apart two surfaces may be and still count as the same (docs/papers/losses_and_metrics.md, section 2)
VOLUME_TOLERANCE_MM = 1.0
IMAGE_TOLERANCE_PX = 2.0


def tolerance_of(volume: Volume) -> float:
    """1 mm in a volume; 2 pixels in an image and where nothing states a size."""
    if volume.unit == "mm" and volume.spatial_dims == 3:
        return VOLUME_TOLERANCE_MM
    return IMAGE_TOLERANCE_PX * max(volume.spacing)


def summarise(
    rows: list[dict[str, Any]], labels: Labels, unit: str, dims: int, missing: list[str], empty_score: float | None
) -> dict[str, Any]:
    """What summary.json holds of these rows; `missing` are references without a prediction."""
    in_mm = unit == "mm" and dims == 3
    by_class = {name: [row for row in rows if row["class"] == name] for name in labels.foreground}
    by_case: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault((row["case"], row.get("slice")), []).append(row)
    over_classes = [
        {**average(of_case, "per_image"), "empty": all(map(_both_empty, of_case))} for of_case in by_case.values()
    ]
    mean = _with_intervals(over_classes)
    classes = {name: _with_intervals(some) for name, some in by_class.items()}
    note = interval_note(min((one["n"] for one in (mean, *classes.values()) if one["n"] > 1), default=SOME_CASES))
    notes = ({"interval_note": note} if note else {}) | ({} if empty_score is None else {"empty_score": empty_score})
    return {
        "cases": len(by_case),
        "unit": unit,
        "tolerance": VOLUME_TOLERANCE_MM if in_mm else IMAGE_TOLERANCE_PX,
        "tolerance_unit": "mm" if in_mm else "px",
        "missing": missing,
        "mean": mean,
        "classes": classes,
        "pooled": {
            name: {measure: finite(value) for measure, value in average(some, "pooled", empty_score).items()}
            for name, some in by_class.items()
            if some
        },
        **notes,
    }


def _both_empty(row: Mapping[str, Any]) -> bool:
    return bool(row["empty"]) if "empty" in row else not (row["tp"] or row["fp"] or row["fn"])


def _with_intervals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure -> mean over the cases that count, its interval, and their number; None where no case does."""
    means = average(rows, "per_image") if rows else {}
    table: dict[str, Any] = {}
    for name in (*MEASURES, *(name for name in FURTHER if rows and name in rows[0])):
        known = [row[name] for row in rows if not np.isnan(row[name])]
        low, high = mean_interval(known)
        values = {"mean": means.get(name, np.nan), "low": low, "high": high}
        table[name] = {key: finite(v) for key, v in values.items()} | {"n": len(known)}
    return table | {"n": table["dice"]["n"], "both_empty": sum(map(_both_empty, rows))}


def finite(value: float) -> float | None:
    """None for what is undefined: JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
