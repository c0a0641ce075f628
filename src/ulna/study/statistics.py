"""What a study may conclude: every model described, every pair tested, and plain sentences about it.

The unit is the patient where known, else the case: a model's score of a unit is its mean over seeds and over the cases of
that patient. Conclusions hold for further patients of the same kind. How far they hold for further trainings is what the
sd over seeds shows; with one seed nothing does, so `Pair.evidence` is False then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ulna.errors import UsageError
from ulna.evaluation.intervals import mean_interval
from ulna.study.ranking import Ranking, rank_datasets
from ulna.study.significance import (
    effect_interval,
    equivalence,
    fewest_units,
    holm,
    needed_units,
    power,
    rank_biserial,
    signed_rank,
)

__all__ = [
    "Description", "Pair", "Ranking", "compare_pairs", "describe", "fewest_units", "needed_units", "paired", "per_unit",
    "power", "rank_datasets", "sentence",
]  # fmt: skip

Floats = NDArray[np.float64]
Scores = Mapping[tuple[str, int, str], float]  # (model, seed, case) -> score
Verdict = Literal["better", "worse", "equivalent", "cannot tell", "too few"]

ONE_SEED = "one seed: not evidence about the architectures"
POWER = 0.8  # of the study that a sentence asks for


@dataclass(frozen=True)
class Description:
    """One model's scores.

    Args:
        mean: over units.
        low: of the 95 % interval of the mean over units; NaN for one unit.
        high: its other end.
        sd_seeds: of the seeds' means; None for one seed.
        sd_units: of the units' scores; None for one unit.
        units: how many define the score, n.
        undefined: how many do not; of Dice, those in which neither reference nor prediction holds a class.
    """

    mean: float
    low: float
    high: float
    sd_seeds: float | None
    sd_units: float | None
    units: int
    undefined: int = 0


@dataclass(frozen=True)
class Pair:
    """Two models on the same units.

    Args:
        a: a model.
        b: the other one; differences are a - b.
        units: patients or cases.
        tests: pairs that share the level.
        difference: mean over units.
        low: of the 95 % interval of the mean difference; NaN for one unit.
        high: its other end.
        sd: of the differences; None for one unit.
        p: two-sided signed-rank test.
        p_holm: the same, adjusted over all pairs.
        effect: matched-pairs rank-biserial correlation, -1 to 1.
        effect_low: of its 95 % interval.
        effect_high: its other end.
        margin: the smallest difference that matters.
        p_equivalent: that the difference lies within the margin.
        p_equivalent_holm: the same, adjusted over all pairs.
        level: of all pairs together.
        needed: units with which 80 % of studies would see a difference as large as the margin; None for one unit.
        verdict: "better" if a is.
        evidence: False if every model was trained once.
    """

    a: str
    b: str
    units: int
    tests: int
    difference: float
    low: float
    high: float
    sd: float | None
    p: float
    p_holm: float
    effect: float
    effect_low: float
    effect_high: float
    margin: float
    p_equivalent: float
    p_equivalent_holm: float
    level: float
    needed: int | None
    verdict: Verdict
    evidence: bool


def paired(scores: Scores) -> dict[tuple[str, int, str], float]:
    """Scores in which a case counts for all models or for none, as a test of pairs needs them; for Dice and the like.

    A case counts if any training has a score of it. Where others have none, they left it rightly empty: neither reference
    nor prediction holds a class. They get 1 there, the best value, beside those that invented something.

    Args:
        scores: (model, seed, case) -> score, NaN where neither holds a class.

    Raises:
        UsageError: if no case counts.
    """
    counting = {case for (_, _, case), score in scores.items() if not math.isnan(score)}
    if scores and not counting:
        raise UsageError("no scored case holds a structure; networks cannot be compared on them")
    return {key: 1.0 if math.isnan(score) else score for key, score in scores.items() if key[2] in counting}


def per_unit(scores: Scores, groups: Mapping[str, str]) -> tuple[list[str], list[str], Floats]:
    """A score for every model and unit: the mean over seeds, then over the cases of the unit.

    NaN, a measure that a case does not define, is left out of the means and stays where nothing else is.

    Args:
        scores: (model, seed, case) -> score.
        groups: case -> patient; a case that is not in it is a unit of its own.

    Returns:
        models, units (patients or cases), both in the order of first appearance, and the array (models, units).

    Raises:
        UsageError: if there are no scores, or not all models have scores of the same cases and seeds.
    """
    models, cases, cube = _cube(scores)
    units, table = _over_cases(cases, _mean(cube, axis=1), groups)
    return models, units, table


def describe(scores: Scores, groups: Mapping[str, str]) -> dict[str, Description]:
    """Mean, spread over seeds, spread over units and a 95 % bootstrap interval of the mean, for every model.

    Args:
        scores: (model, seed, case) -> score, in any unit.
        groups: case -> patient, as in `per_unit`.

    Raises:
        UsageError: as in `per_unit`.

    The interval is `ulna.evaluation.intervals.mean_interval`, as in every table.
    """
    models, _, table = per_unit(scores, groups)
    _, cases, cube = _cube(scores)
    of_seeds = _mean(_over_cases(cases, cube, groups)[1], axis=-1)
    described = {}
    for model, row, seeds in zip(models, table, of_seeds, strict=True):
        known = row[~np.isnan(row)]
        mean = float(known.mean()) if known.size else math.nan
        described[model] = Description(
            mean, *mean_interval(known), _sd(seeds), _sd(known), known.size, row.size - known.size
        )
    return described


def compare_pairs(
    models: Sequence[str],
    scores: ArrayLike,
    margin: float = 0.01,
    level: float = 0.05,
    *,
    seeds: int = 1,
    resamples: int = 2000,
) -> list[Pair]:
    """Test every pair of models on the same units.

    - better or worse: the signed-rank test adjusted by Holm over all pairs, where mean and ranks point the same way.
    - equivalent: two one-sided signed-rank tests, adjusted by Holm over all pairs, and the 95 % interval of the mean
      difference within the margin. The interval is asked for because ranks do not see how large a rare failure is: a
      model that fails on few cases could pass the tests and have a mean beyond the margin. Failures of which the units
      hold none stay unseen: those of 1 case in 20 are missing in every sixth study of 34. Equivalence comes before
      better and worse: a difference that is sure, but too small to matter, is one of no consequence.
    - too few: not even a model that wins on every unit could pass Holm's first step.

    Each of the two families of tests keeps the level: a false "better" or "worse" among all pairs happens in at most
    that share of studies, and so does a false "equivalent".

    Args:
        models: names.
        scores: (models, units) as of `per_unit`; higher is better, so give -HD95.
        margin: the smallest difference that matters, in the unit of the scores.
        level: of all pairs together.
        seeds: trainings a model that the scores are means of; with one, `evidence` is False.
        resamples: of the bootstrap intervals.

    Returns:
        The pairs in the order of `models`: (0, 1), (0, 2), ...; none for one model.

    Raises:
        UsageError: if the table does not fit the models, a score is missing, or a number is out of its range.

    By `signed_rank`, `equivalence`, `holm`, `rank_biserial` of `ulna.study.significance`; `mean_interval` of
    `ulna.evaluation.intervals`.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(models) or not table.size:
        raise UsageError(f"scores of shape {table.shape} do not fit {len(models)} models; give (models, units)")
    if not np.isfinite(table).all():
        raise UsageError("some units have no score; compare a measure that every case defines, such as Dice")
    chosen = list(combinations(range(len(models)), 2))
    # rounded as in the tests: else models that differ by a constant would have a spread of rounding noise
    differences = [(table[a] - table[b]).round(12) for a, b in chosen]
    p = [signed_rank(d) for d in differences]
    p_equivalent = [equivalence(d, margin) for d in differences]
    p_holm, p_equivalent_holm = holm(p), holm(p_equivalent)
    pairs = []
    for at, ((a, b), d) in enumerate(zip(chosen, differences, strict=True)):
        sd = _sd(d)
        low, high = mean_interval(d, resamples=resamples)
        effect_low, effect_high = effect_interval(d, resamples=resamples)
        pair = Pair(
            a=models[a],
            b=models[b],
            units=d.size,
            tests=len(chosen),
            difference=float(d.mean()),
            low=low,
            high=high,
            sd=sd,
            p=p[at],
            p_holm=float(p_holm[at]),
            effect=float(rank_biserial(d)),
            effect_low=effect_low,
            effect_high=effect_high,
            margin=margin,
            p_equivalent=p_equivalent[at],
            p_equivalent_holm=float(p_equivalent_holm[at]),
            level=level,
            needed=None if sd is None else needed_units(sd, margin, power=POWER, level=level, tests=len(chosen)),
            verdict="cannot tell",
            evidence=seeds > 1,
        )
        pairs.append(replace(pair, verdict=_verdict(pair)))
    return pairs


def sentence(pair: Pair, unit_name: str = "cases") -> str:
    """What may be said about a pair, in plain words. A point is 0.01, so the scores lie between 0 and 1, as Dice does.

    Args:
        pair: of `compare_pairs`.
        unit_name: what the units are, many of them: "cases", "patients".

    Example:
        >>> few = compare_pairs(["unet", "unetpp"], [[0.9, 0.8, 0.7], [0.8, 0.7, 0.6]], seeds=3)
        >>> sentence(few[0])
        'unet and unetpp cannot be compared with n = 3: a test needs at least 6 cases.'
    """
    said = _said(pair, unit_name)
    return f"{said}." if pair.evidence else f"{said} ({ONE_SEED})."


def _said(pair: Pair, unit_name: str) -> str:
    a, b, sign, n = pair.a, pair.b, 1, f"n = {pair.units}"
    if pair.difference < 0 or (pair.difference == 0 and pair.effect < 0):
        a, b, sign = b, a, -1  # the better one first
    low, high = sorted((sign * pair.low, sign * pair.high))
    by = f"{_points(abs(pair.difference))} (95 % interval {100 * low:.2f} to {100 * high:.2f}"
    sure = pair.p_holm <= pair.level
    if pair.verdict == "too few":
        least = fewest_units(level=pair.level, tests=pair.tests)
        among = f" of {pair.tests} pairs" if pair.tests > 1 else ""
        return f"{pair.a} and {pair.b} cannot be compared with {n}: a test{among} needs at least {least} {unit_name}"
    if pair.verdict == "equivalent":
        text = f"{pair.a} and {pair.b} are equivalent within {_points(pair.margin)}: "
        text += f"{a} is ahead by {by}; {_p(pair.p_equivalent_holm)}, {n} {unit_name})"
        return f"{text}, a sure but small difference" if sure and pair.difference * pair.effect > 0 else text
    if pair.verdict != "cannot tell":
        text = f"{a} is better than {b} by {by}; {_p(pair.p_holm)}, {n} {unit_name})"
        return text if low > 0 else f"{text}, on most {unit_name}: a few large differences leave the mean open"
    text = f"{pair.a} and {pair.b} cannot be told apart with {n}: {a} is ahead by {by}; {_p(pair.p_holm)})"
    if sure:
        return f"{text}, but the {unit_name} by rank say otherwise: look for rare large differences"
    if pair.needed is not None and pair.needed > pair.units:
        return f"{text}; about {_rough(pair.needed)} {unit_name} would be needed for {_points(pair.margin)}"
    return f"{text}; a difference of {_points(pair.margin)} would probably have been seen"


def _points(value: float) -> str:
    number = f"{100 * value:.2f}".rstrip("0").rstrip(".")
    return f"{number} point" if number == "1" else f"{number} points"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _rough(number: int) -> str:
    """Up to two digits: a sd from a few cases gives no more."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / unit) * unit:,}"


def _verdict(pair: Pair) -> Verdict:
    if pair.units < fewest_units(level=pair.level, tests=pair.tests):
        return "too few"
    if pair.p_equivalent_holm <= pair.level and -pair.margin < pair.low and pair.high < pair.margin:
        return "equivalent"
    if pair.p_holm <= pair.level and pair.difference * pair.effect > 0:
        return "better" if pair.effect > 0 else "worse"
    return "cannot tell"


def _cube(scores: Scores) -> tuple[list[str], list[str], Floats]:
    """Models, cases and the array (models, seeds, cases)."""
    models, seeds, cases = (
        (list(dict.fromkeys(names)) for names in zip(*scores, strict=True)) if scores else ([], [], [])
    )
    if not models:
        raise UsageError("there are no scores; finish a training of every model first")
    wanted = list(product(models, seeds, cases))
    missing = [key for key in wanted if key not in scores]
    if missing:
        named = "; ".join(f"{model} has no score of {case} with seed {seed}" for model, seed, case in missing[:3])
        more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(
            f"the models were not scored on the same cases and seeds: {named}{more}; train what is missing"
        )
    values = np.array([scores[key] for key in wanted], dtype=np.float64)
    return models, cases, values.reshape(len(models), len(seeds), len(cases))


def _over_cases(cases: Sequence[str], values: Floats, groups: Mapping[str, str]) -> tuple[list[str], Floats]:
    """Units, and (*, cases) -> the means (*, units)."""
    of = np.array([groups.get(case, case) for case in cases])
    units = list(dict.fromkeys(of.tolist()))
    return units, np.stack([_mean(values[..., of == unit], axis=-1) for unit in units], axis=-1)


def _mean(values: Floats, axis: int) -> Floats:
    """Without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _sd(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if known.size > 1 else None
