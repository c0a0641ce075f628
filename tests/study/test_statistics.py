"""What a study concludes: scores of units, pairs, verdicts and sentences, by hand and against scipy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.study.simulated import CASES, simulate
from ulna.errors import UsageError
from ulna.evaluation.intervals import mean_interval
from ulna.study.significance import effect_interval, holm, needed_units, rank_biserial
from ulna.study.statistics import Pair, compare_pairs, describe, paired, per_unit, sentence

NAMES = ["unet", "unetpp", "nnunet", "sdunet"]


# --- scores of units


SCORES = {
    ("a", 0, "c1"): 0.8, ("a", 0, "c2"): 0.6, ("a", 0, "c3"): 0.9,
    ("a", 1, "c1"): 0.9, ("a", 1, "c2"): 0.7, ("a", 1, "c3"): 0.7,
    ("b", 0, "c1"): 0.5, ("b", 0, "c2"): 0.5, ("b", 0, "c3"): 0.5,
    ("b", 1, "c1"): 0.5, ("b", 1, "c2"): 0.5, ("b", 1, "c3"): 0.5,
}  # fmt: skip


def test_units_are_patients_where_known() -> None:
    models, units, table = per_unit(SCORES, {"c1": "p", "c2": "p"})
    assert (models, units) == (["a", "b"], ["p", "c3"])
    assert table == pytest.approx(np.array([[0.75, 0.8], [0.5, 0.5]]))
    assert per_unit(SCORES, {})[1] == ["c1", "c2", "c3"]


def test_missing_scores_are_named() -> None:
    scores: dict[tuple[str, int, str], float] = dict(SCORES)
    del scores["b", 1, "c2"]
    with pytest.raises(UsageError, match="not scored on the same cases and seeds: b has no score of c2 with seed 1;"):
        per_unit(scores, {})
    # every other score of c9 is missing now: a with both seeds, b with seed 1
    with pytest.raises(UsageError, match=r"a has no score of c9 with seed 0; .*; and 1 more; train"):
        describe({**scores, ("b", 0, "c9"): 0.5}, {})
    with pytest.raises(UsageError, match="no scores"):
        per_unit({}, {})


def test_a_model_in_words_of_numbers() -> None:
    described = describe(SCORES, {"c1": "p", "c2": "p"})["a"]
    assert described.mean == pytest.approx(0.775)
    # seed means over units: (0.7 + 0.9) / 2 and (0.8 + 0.7) / 2, which differ by 0.05
    assert described.sd_seeds == pytest.approx(0.05 / math.sqrt(2))
    assert described.sd_units == pytest.approx(0.05 / math.sqrt(2))
    assert (described.low, described.high) == mean_interval([0.75, 0.8])
    assert described.units == 2
    one_seed = describe({key: value for key, value in SCORES.items() if key[1] == 0}, {})["a"]
    assert one_seed.sd_seeds is None
    one_case = describe({key: value for key, value in SCORES.items() if key[2] == "c1"}, {})["a"]
    assert one_case.sd_units is None
    assert math.isnan(one_case.low)


def test_undefined_scores_are_left_out() -> None:
    scores: Mapping[Any, float] = {
        **SCORES,
        ("a", 0, "c3"): math.nan,
        ("b", 0, "c3"): math.nan,
        ("b", 1, "c3"): math.nan,
    }
    _, _, table = per_unit(scores, {})
    assert table[0] == pytest.approx([0.85, 0.65, 0.7])
    described = describe(scores, {})
    assert (described["b"].mean, described["b"].units) == (0.5, 2)
    assert described["a"].units == 3
    nothing = describe({("a", 0, "c"): math.nan}, {})["a"]
    assert math.isnan(nothing.mean)
    assert nothing.units == 0


# --- pairs


def test_a_pair_holds_what_scipy_says() -> None:
    table = simulate(0, 1, models=3)[0] + np.array([[0.02], [0], [0.005]])
    pairs = compare_pairs(NAMES[:3], table, seeds=3)
    assert [(pair.a, pair.b) for pair in pairs] == [("unet", "unetpp"), ("unet", "nnunet"), ("unetpp", "nnunet")]
    p = [stats.wilcoxon(table[a], table[b], method="exact").pvalue for a, b in ((0, 1), (0, 2), (1, 2))]
    assert [pair.p for pair in pairs] == pytest.approx(p)
    assert [pair.p_holm for pair in pairs] == pytest.approx(holm(p))
    assert [pair.p_equivalent_holm for pair in pairs] == pytest.approx(holm([pair.p_equivalent for pair in pairs]))
    d, first = (table[0] - table[1]).round(12), pairs[0]
    assert (first.difference, first.units, first.tests) == (pytest.approx(d.mean()), CASES, 3)
    assert (first.low, first.high) == mean_interval(d)
    assert first.effect == pytest.approx(rank_biserial(d))
    assert (first.effect_low, first.effect_high) == effect_interval(d)
    assert first.sd == pytest.approx(d.std(ddof=1))
    assert first.needed == needed_units(d.std(ddof=1), 0.01, tests=3)
    assert compare_pairs(NAMES[:3], table, seeds=3) == pairs
    assert compare_pairs(["alone"], table[:1]) == []


def test_a_turned_pair_says_the_opposite() -> None:
    table = simulate(1, 1, models=2)[0] + np.array([[0.03], [0]])
    (pair,), (turned,) = compare_pairs(["a", "b"], table, seeds=2), compare_pairs(["b", "a"], table[::-1], seeds=2)
    assert (pair.verdict, turned.verdict) == ("better", "worse")
    assert pair.p == pytest.approx(turned.p)
    assert (pair.difference, pair.effect) == pytest.approx((-turned.difference, -turned.effect))
    assert sentence(pair).startswith("a is better than b by ")
    assert sentence(turned).startswith("a is better than b by ")


@pytest.mark.parametrize(("models", "least"), [(2, 6), (3, 7), (4, 8)])
def test_too_few_cases_are_said_so(models: int, least: int) -> None:
    """As few as cannot pass Holm's first step even if one model wins on every case."""
    steps = np.linspace(0.6, 0.9, models)[:, None]
    table = steps + np.random.default_rng(0).normal(0, 0.001, size=(models, least))
    assert {pair.verdict for pair in compare_pairs(NAMES[:models], table)} == {"worse"}
    few = compare_pairs(NAMES[:models], table[:, 1:])
    assert {pair.verdict for pair in few} == {"too few"}
    assert all(pair.p_holm > 0.05 for pair in few)
    assert f"n = {least - 1}: a test" in sentence(few[0], "patients")
    assert f"at least {least} patients" in sentence(few[0], "patients")
    (single,) = compare_pairs(["a", "b"], [[0.9], [0.8]])
    assert (single.verdict, single.needed, single.sd) == ("too few", None, None)
    assert "n = 1" in sentence(single)


def test_equal_models_are_equivalent() -> None:
    (pair,) = compare_pairs(["a", "b"], [[0.9] * 20, [0.9] * 20], seeds=3)
    assert (pair.verdict, pair.p, pair.effect, pair.difference) == ("equivalent", 1, 0, 0)
    assert sentence(pair).startswith("a and b are equivalent within 1 point:")


def test_a_sure_difference_below_the_margin_is_equivalent() -> None:
    table = simulate(2, 1, models=1)[0] + np.array([[0.0], [0.003]])
    table[1] += np.random.default_rng(0).normal(0, 0.002, size=CASES)
    (pair,) = compare_pairs(["a", "b"], table, seeds=3)
    assert pair.verdict == "equivalent"
    assert pair.p_holm < 0.001
    assert sentence(pair).endswith("a sure but small difference.")
    (strict,) = compare_pairs(["a", "b"], table, 0.001, seeds=3)
    assert strict.verdict == "worse"


def test_rare_failures_are_not_equivalent() -> None:
    """The ranks see two alike models; the mean is 2 points apart."""
    rng = np.random.default_rng(0)
    table = 0.9 + rng.normal(0, 0.002, size=(2, 60))
    table[0, :3] -= 0.4
    (pair,) = compare_pairs(["a", "b"], table, seeds=3)
    assert pair.p_equivalent < 0.001
    assert pair.low < -0.01
    assert pair.verdict == "cannot tell"


def test_mean_and_ranks_must_agree() -> None:
    """a wins 54 of 60 cases by little and loses 6 by much: no model is said to be better."""
    table = np.full((2, 60), 0.9) + np.random.default_rng(0).normal(0, 0.0001, size=(2, 60))
    table[0] += 0.005
    table[0, :6] -= 0.3
    (pair,) = compare_pairs(["a", "b"], table, 0.001, seeds=3)
    assert pair.p_holm < 0.001
    assert pair.difference < 0 < pair.effect
    assert pair.verdict == "cannot tell"
    assert "by rank say otherwise" in sentence(pair)


def test_refused_tables() -> None:
    for scores, match in (
        ([[0.9, 0.8]], "do not fit 2 models"),
        ([0.9, 0.8], "do not fit"),
        (np.empty((2, 0)), "do not fit"),
        ([[0.9, math.nan], [0.8, 0.7]], "have no score"),
    ):
        with pytest.raises(UsageError, match=match):
            compare_pairs(["a", "b"], scores)
    with pytest.raises(UsageError, match="margin"):
        compare_pairs(["a", "b"], [[0.9, 0.8], [0.8, 0.7]], margin=0)
    with pytest.raises(UsageError, match="level"):
        compare_pairs(["a", "b"], [[0.9, 0.8], [0.8, 0.7]], level=5)


PAIR = Pair(
    a="unet", b="unetpp", units=34, tests=6, difference=0.002, low=-0.011, high=0.0151, sd=0.03, p=0.3, p_holm=0.9,
    effect=0.1, effect_low=-0.3, effect_high=0.4, margin=0.01, p_equivalent=0.3, p_equivalent_holm=1.0, level=0.05,
    needed=137, verdict="cannot tell", evidence=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "unet and unetpp cannot be told apart with n = 34: unet is ahead by 0.2 points (95 % interval -1.10 to 1.51; "
            "p = 0.9); about 140 cases would be needed for 1 point.",
        ),
        (
            {"needed": 30},
            "unet and unetpp cannot be told apart with n = 34: unet is ahead by 0.2 points (95 % interval -1.10 to 1.51; "
            "p = 0.9); a difference of 1 point would probably have been seen.",
        ),
        (
            {"verdict": "better", "difference": 0.021, "low": 0.012, "high": 0.03, "p_holm": 0.0031},
            "unet is better than unetpp by 2.1 points (95 % interval 1.20 to 3.00; p = 0.0031, n = 34 cases).",
        ),
        (
            {"verdict": "worse", "difference": -0.021, "low": -0.03, "high": 0.001, "p_holm": 0.00031, "effect": -0.5},
            "unetpp is better than unet by 2.1 points (95 % interval -0.10 to 3.00; p < 0.001, n = 34 cases), "
            "on most cases: a few large differences leave the mean open.",
        ),
        (
            {"verdict": "equivalent", "low": -0.005, "high": 0.008, "p_equivalent_holm": 0.02},
            "unet and unetpp are equivalent within 1 point: unet is ahead by 0.2 points (95 % interval -0.50 to 0.80; "
            "p = 0.02, n = 34 cases).",
        ),
        (
            {"verdict": "too few", "units": 5, "evidence": False},
            "unet and unetpp cannot be compared with n = 5: a test of 6 pairs needs at least 8 cases "
            "(one seed: not evidence about the architectures).",
        ),
    ],
)
def test_sentences(changes: dict[str, Any], said: str) -> None:
    assert sentence(replace(PAIR, **changes)) == said


@pytest.mark.parametrize(
    ("needed", "said"), [(40, "40"), (97, "97"), (137, "140"), (1201, "1,300"), (98_765, "99,000")]
)
def test_needed_cases_are_rounded_up_to_what_is_known(needed: int, said: str) -> None:
    assert f"about {said} patients" in sentence(replace(PAIR, needed=needed), "patients")


def test_one_seed_is_no_evidence() -> None:
    (pair,) = compare_pairs(["a", "b"], simulate(1, 1, models=2)[0])
    assert not pair.evidence
    assert sentence(pair).endswith("(one seed: not evidence about the architectures).")
    (more,) = compare_pairs(["a", "b"], simulate(1, 1, models=2)[0], seeds=2)
    assert more.evidence
    assert "seed" not in sentence(more)


def test_a_case_counts_for_all_models_of_a_pair_or_for_none() -> None:
    nan = math.nan
    scores = {
        ("a", 0, "held"): 0.8, ("b", 0, "held"): 0.7,
        ("a", 0, "empty"): nan, ("b", 0, "empty"): nan,
        ("a", 0, "invented"): 0.0, ("b", 0, "invented"): nan,
    }  # fmt: skip
    _, units, table = per_unit(paired(scores), {})
    assert units == ["held", "invented"]
    assert table.tolist() == [[0.8, 0.0], [0.7, 1.0]]
    described = describe(scores, {})
    assert [(one.mean, one.units, one.undefined) for one in described.values()] == [(0.4, 2, 1), (0.7, 1, 2)]
    with pytest.raises(UsageError, match="no scored case holds a structure"):
        paired({("a", 0, "x"): nan})
