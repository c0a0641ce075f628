"""Scores by the fields of groups.json, such as site or scanner: means with intervals, and the gap between best and worst.

The unit is the patient within a group, where patients are known, else the case.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.evaluation.intervals import difference_interval, interval_note, mean_interval
from ulna.evaluation.metrics import LENGTHS, mean_known

MEASURES = ("dice", "sensitivity", "hd95", "nsd", "lesion_f1_10")  # one of each kind, where it was measured
LEAST = 2  # units of a group that has a place in the gap
SHUFFLES = 2000
MOST_GROUPS = 50  # of a field; one with more, such as a date, divides nothing

Fields = Mapping[str, Mapping[str, str]]  # case -> field -> group


class Scored(NamedTuple):
    """A case and its measures, means over the classes."""

    case: str
    values: Mapping[str, float]


def cases_of(rows: Iterable[Mapping[str, Any]]) -> list[Scored]:
    """Rows of cases (or slices) and classes -> the mean of every case over its rows that count."""
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    return [
        Scored(case, {name: mean_known([row[name] for row in some]) for name in MEASURES if name in some[0]})
        for case, some in by_case.items()
    ]


def by_subgroups(scored: Iterable[Scored], fields: Fields, patients: Mapping[str, str]) -> dict[str, Any]:
    """Field -> `groups` (group -> measure -> mean, interval and n), `gap` (measure -> see `_gap`) and notes.

    Args:
        scored: the cases.
        fields: what groups.json says of them.
        patients: case -> patient, where known.
    """
    cases = list(scored)
    names = dict.fromkeys(field for one in cases for field in fields.get(one.case, {}))
    return {name: _of_field(name, cases, fields, patients) for name in names}


def _of_field(field: str, cases: list[Scored], fields: Fields, patients: Mapping[str, str]) -> dict[str, Any]:
    units: dict[str, dict[str, list[Scored]]] = {}
    without = 0
    for one in cases:
        group = fields.get(one.case, {}).get(field)
        if group is None:
            without += 1
            continue
        patient = patients.get(one.case)
        unit = f"case {one.case}" if patient is None else f"patient {patient}"
        units.setdefault(group, {}).setdefault(unit, []).append(one)
    told: dict[str, Any] = {"cases_without": without}
    if len(units) > MOST_GROUPS:
        note = f"{len(units)} groups divide nothing: write ranges in place of numbers, at most {MOST_GROUPS} groups"
        return {**told, "groups": {}, "gap": {}, "note": note}
    groups: dict[str, dict[str, Any]] = {}
    gaps: dict[str, Any] = {}
    for measure in (name for name in MEASURES if name in cases[0].values):
        values = {
            group: _known([mean_known([one.values[measure] for one in some]) for some in of.values()])
            for group, of in sorted(units.items())
        }
        for group, known in values.items():
            low, high = mean_interval(known)
            plain = {"mean": mean_known(known), "low": low, "high": high}
            told_of = {key: float(v) if math.isfinite(v) else None for key, v in plain.items()} | {"n": known.size}
            groups.setdefault(group, {})[measure] = told_of
        gap = _gap({group: known for group, known in values.items() if known.size >= LEAST}, measure in LENGTHS)
        if gap is not None:
            gaps[measure] = gap
    counted = [one["dice"]["n"] for one in groups.values()]
    note = interval_note(min(counted))
    return {**told, "groups": groups, "gap": gaps} | ({"note": note} if note else {})


def _gap(values: Mapping[str, NDArray[np.float64]], less_is_better: bool) -> dict[str, Any] | None:
    """Best and worst group, the difference of their means with its interval, and p; None with fewer than two groups.

    Of several groups some are best and worst by chance, so the difference is never 0. p is the share of random divisions of
    the same units into groups of the same sizes in which it is as large (permutation test).
    """
    if len(values) < 2:
        return None
    means = {group: float(of.mean()) for group, of in values.items()}
    low, high = min(means, key=lambda g: means[g]), max(means, key=lambda g: means[g])
    best, worst = (low, high) if less_is_better else (high, low)
    difference = means[high] - means[low]
    ends = difference_interval(values[high], values[low])
    return {
        "best": best,
        "worst": worst,
        "difference": difference,
        "low": ends[0],
        "high": ends[1],
        "p": _p(list(values.values()), difference),
    }


def _p(values: list[NDArray[np.float64]], difference: float) -> float:
    units = np.concatenate(values)
    of = np.repeat(np.arange(len(values)), [one.size for one in values])
    share = (of[:, None] == np.arange(len(values))) / np.array([one.size for one in values])
    rng = np.random.default_rng(0)
    as_large, step = 1, max(1, 2_000_000 // units.size)
    for done in range(0, SHUFFLES, step):
        n = min(step, SHUFFLES - done)
        means = rng.permuted(np.tile(units, (n, 1)), axis=1) @ share
        as_large += int(np.count_nonzero(np.ptp(means, axis=1) >= difference - 1e-12))
    return as_large / (SHUFFLES + 1)


def _known(values: list[float]) -> NDArray[np.float64]:
    found = np.array(values, dtype=np.float64)
    return found[~np.isnan(found)]
