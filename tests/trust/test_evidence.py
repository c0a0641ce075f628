"""Temperature, Dice without a reference, and rules by evidence: each against numbers that are known."""

import numpy as np
import pytest
import torch

from ulna.recipe import Labels
from ulna.trust.choosing import candidates, choose_rules, dice_by_rule
from ulna.trust.cleaning import Rule
from ulna.trust.dice import MEAN, fit_lines, uncalibrated
from ulna.trust.structures import Found, find_structures, odd_structures, sum_up
from ulna.trust.temperature import Sample, fit_temperature, scaled


def drawn(temperature, classes, seed):
    """Voxels whose classes are drawn by their probabilities, which are then told too sure by a temperature."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 1.5, (classes, 4000)).astype(np.float32))
    if classes == 1:
        true = (rng.random((1, 4000)) < logits.sigmoid().numpy()).astype(np.int64)
        return Sample((logits * temperature).sigmoid().numpy(), true)
    p = logits.softmax(0).numpy()
    true = (rng.random(4000)[None] > p.cumsum(0)).sum(0).clip(0, classes - 1)
    return Sample((logits * temperature).softmax(0).numpy(), true)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("sure", [0.5, 3.0])
def test_the_temperature_that_was_put_in_is_found(classes, sure):
    found = fit_temperature([drawn(sure, classes, seed) for seed in range(6)], exclusive=classes > 1)
    assert found.value == pytest.approx(sure, rel=0.1)  # 24 000 draws
    assert found.ece_after < 0.3 * found.ece_before


def test_calibrated_probabilities_stay_and_one_case_is_not_enough():
    samples = [drawn(1.0, 3, seed) for seed in range(6)]
    found = fit_temperature(samples, exclusive=True)
    assert found.value == pytest.approx(1.0, abs=0.05) and found.ece_after <= found.ece_before
    assert fit_temperature(samples[:1], exclusive=True) is None


def test_no_temperature_changes_an_answer():
    maps = torch.rand(4, 500).softmax(0)
    for t in (0.3, 5.0):
        after = scaled(maps.clone(), t, exclusive=True)
        assert torch.equal(after.argmax(0), maps.argmax(0))
        torch.testing.assert_close(after.sum(0), torch.ones(500))
        one = torch.rand(1, 500)
        assert torch.equal(scaled(one.clone(), t, exclusive=False) > 0.5, one > 0.5)


def test_the_line_from_agreement_to_dice_is_found_with_its_error():
    rng = np.random.default_rng(0)
    agreement = rng.uniform(0.5, 1, 200)
    true = 0.2 + 0.7 * agreement + rng.normal(0, 0.02, 200)
    lines = fit_lines([{"a": x} for x in agreement], [{"a": y} for y in true])
    assert (lines.classes["a"].slope, lines.classes["a"].intercept) == pytest.approx((0.7, 0.2), abs=0.02)
    assert lines.mean.error == pytest.approx(0.02 * np.sqrt(2 / np.pi), rel=0.15)
    new = rng.uniform(0.5, 1, 2000)
    told = [lines.estimate({"a": x})[MEAN] for x in new]
    held = [t.low <= 0.2 + 0.7 * x + rng.normal(0, 0.02) <= t.high for t, x in zip(told, new, strict=True)]
    assert np.mean(held) == pytest.approx(0.9, abs=0.05)  # a quantile of 200 cases is known to 0.02


def test_agreement_that_tells_nothing_is_not_used():
    rng = np.random.default_rng(3)
    true = rng.uniform(0.6, 0.9, 30)
    noise = fit_lines([{"a": x} for x in rng.permutation(true)], [{"a": y} for y in true]).mean
    assert noise.slope == 0 and noise.intercept == pytest.approx(true.mean())
    told = fit_lines([{"a": x} for x in true], [{"a": y} for y in true]).mean
    assert told.slope == pytest.approx(1) and told.error < 1e-6 < told.error_of_mean


def test_few_cases_and_unknown_classes_tell_nothing():
    few = fit_lines([{"a": 0.5 + n / 20} for n in range(4)], [{"a": 0.8}] * 4)
    assert few.mean is None and not few.classes
    lines = fit_lines([{"a": 0.5 + n / 20} for n in range(6)], [{"a": 0.9 - n / 20} for n in range(6)])
    assert (
        lines.mean.slope == 0 and lines.mean.error == lines.mean.error_of_mean
    )  # less agreement is never a better answer
    assert lines.estimate({"a": float("nan")}) == {}
    assert uncalibrated({"a": 0.5, "b": float("nan")})[MEAN] == (0.5, None, None)


def specks(seed, count):
    """A ball in a reference, and a prediction with specks about it."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:20, :20, :20]
    reference = ((z - 10) ** 2 + (y - 10) ** 2 + (x - 10) ** 2 < 30).astype(np.uint8)
    mask = reference.copy()
    for at in rng.integers(0, 20, (count, 3)):
        if not reference[tuple(slice(max(0, n - 1), n + 2) for n in at)].any():
            mask[tuple(at)] = 1
    return mask, reference


def rows(make, count, labels=None):
    labels = labels or Labels()
    known = sum_up([find_structures(specks(0, 0)[1], labels, 1.0)], "px")
    rules = candidates("foreground", known)
    return [dice_by_rule(*make(n), labels, "foreground", rules, 1.0) for n in range(count)]


def test_specks_are_taken_away_where_the_cases_say_so():
    kept = choose_rules({"foreground": rows(lambda n: specks(n, 20), 10)})["foreground"]
    assert kept.rule == Rule(largest=True)
    assert kept.dice_before < 0.995 and kept.dice_after == 1.0 and kept.p < 0.05 / 3


def test_what_helps_in_too_few_cases_or_harms_is_not_kept():
    assert choose_rules({"foreground": rows(lambda n: specks(n, 20), 4)}) == {}
    assert choose_rules({"foreground": rows(lambda n: specks(n, 20 if n < 3 else 0), 20)}) == {}

    def two_objects(_):
        reference = np.zeros((20, 20), np.uint8)
        reference[2:8, 2:8] = reference[12:17, 12:17] = 1
        return reference.copy(), reference

    assert choose_rules({"foreground": rows(two_objects, 20)}) == {}


def test_more_classes_need_more_evidence():
    some = rows(lambda n: specks(n, 20), 7)
    assert "foreground" in choose_rules({"foreground": some})
    flat = [dict.fromkeys(some[0], 0.9)] * 7
    assert choose_rules({"foreground": some, **{f"other {n}": flat for n in range(5)}}) == {}


def test_holes_are_filled_beside_what_is_kept():
    def pierced(n):
        mask, reference = specks(n, 15)
        mask[10, 10, 10 + n % 3] = 0
        return mask, reference

    kept = choose_rules({"foreground": rows(pierced, 12)})["foreground"]
    assert kept.rule == Rule(largest=True, holes=True)


KNOWN = sum_up([{"a": Found(v, 1, v, 1.0, False), "b": Found(1.0, 2, 0.4, 0.6, True)} for v in (10.0, 12.0) * 50], "ml")


def test_few_references_do_not_say_how_large_a_structure_may_be():
    many = sum_up([{"a": Found(10.0 + n / 50, 1, 10.0, 1.0, False)} for n in range(100)], "ml")  # 10 to 11.98
    few = sum_up([{"a": Found(v, 1, v, 1.0, False)} for v in (10.0, 11.0, 12.0)], "ml")
    for volume, by_many, by_few in (
        (13.0, {"larger"}, set()),
        (17.0, {"larger"}, {"larger"}),
        (7.0, {"smaller"}, {"smaller"}),
    ):
        found = {"a": Found(volume, 1, volume, 1.0, False)}
        assert {one.what for one in odd_structures(found, many, "ml")} == by_many
        assert {one.what for one in odd_structures(found, few, "ml")} == by_few


def test_one_reference_shows_no_range():
    """Its own volume is no measure of what others may have."""
    one = sum_up([{"a": Found(10.0, 1, 10.0, 1.0, False)}], "ml")
    assert odd_structures({"a": Found(20.0, 1, 20.0, 1.0, False)}, one, "ml") == ()


@pytest.mark.parametrize(
    ("found", "flags"),
    [
        ({"a": Found(11.0, 1, 11.0, 1.0, False), "b": Found(1.0, 2, 0.4, 0.6, True)}, set()),
        ({"a": Found(0.0, 0, 0.0, 0.0, False)}, {"missing"}),
        ({"a": Found(11.0, 1, 11.0, 1.0, True)}, {"border"}),
        ({"a": Found(11.0, 2, 1.0, 0.9, False)}, {"pieces"}),
        ({"a": Found(14.0, 1, 14.0, 1.0, False)}, {"larger"}),
        ({"a": Found(8.0, 1, 8.0, 1.0, False)}, {"smaller"}),
    ],
)
def test_a_mask_is_flagged_by_what_the_references_had(found, flags):
    assert {one.what for one in odd_structures(found, KNOWN, "ml")} == flags
    in_pixels = {one.what for one in odd_structures(found, KNOWN, "px")}
    assert in_pixels == flags - {"larger", "smaller"}
