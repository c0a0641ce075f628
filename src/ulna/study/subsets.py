"""Scores of the trainings of a study by the fields of groups.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ulna.evaluation.subgroups import MEASURES, Scored, by_subgroups
from ulna.study.scores import Row


def of_subgroups(rows: Sequence[Row], fields: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Field -> scores by group of one network: a case (or the volume of its slices) has its mean over seeds and folds."""
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        if row.classes == "mean":
            by_case.setdefault(row.image or row.case, []).append(row)
    scored = []
    for case, some in by_case.items():
        columns = {
            name: [row.values[name] for row in some] for name in MEASURES if all(name in row.values for row in some)
        }
        means = {name: np.array(column) for name, column in columns.items()}
        scored.append(Scored(case, {name: _mean(column) for name, column in means.items()}))
    patients = {case: some[0].group for case, some in by_case.items() if some[0].group}
    return by_subgroups(scored, fields, patients)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
