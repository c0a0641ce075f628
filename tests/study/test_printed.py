"""Tables as printed: the deviation that the paper has, per class, and ours beside every published cell."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.study.test_outcome import SUMMARY
from ulna.study.costs import Cost
from ulna.study.outcome import analyse
from ulna.study.printed import class_table, measured, published_table
from ulna.study.published import Published
from ulna.study.publishing import pair_table
from ulna.study.scores import MEASURES, Row

CLASSES = ("pancreas", "cancer")
MODELS = ("marimont/unet", "marimont/implicit_unet")


def job(model, seed):
    training = SimpleNamespace(max_hours=None, most_patience=1, most_epochs=1, length=1, validate_every=1)
    test = {"unit": "px", "pooled": {name: {"iou": 0.5} for name in CLASSES}}
    return SimpleNamespace(
        name=f"{model} seed {seed}", seed=seed, fold=None, variant=SimpleNamespace(name=model),
        recipe=SimpleNamespace(training=training), summary=lambda: {**SUMMARY, "test": test},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores():
    """(model, seed, case, class)."""
    found = np.random.default_rng(0).uniform(0.3, 0.9, (2, 3, 5, 2))
    found[0, :, 4, 1] = np.nan  # a case without a tumour, which that network left empty
    return found


@pytest.fixture(scope="module")
def outcome(scores):
    rows = []
    for (m, seed, case), of_classes in ((at, scores[at]) for at in np.ndindex(2, 3, 5)):
        known = of_classes[~np.isnan(of_classes)]
        for name, value in (*zip(CLASSES, of_classes, strict=True), ("mean", known.mean())):
            values = dict.fromkeys(MEASURES, float(value)) | {"ppv": float(value) / 2, "sensitivity": float(value) / 4}
            rows.append(Row(MODELS[m], seed, None, f"c{case}", "", name, values))
    cost = Cost(1, 1.0, (1.0, 1.0), 1.0, None, image_s=2.5, steps_s=81.26, steps_mb=1234.4)
    costs = SimpleNamespace(models={MODELS[0]: cost, MODELS[1]: Cost(1, 1.0, (1.0, 1.0), 1.0, None)}, to_json=dict)
    return analyse(
        rows, [job(model, seed) for model in MODELS for seed in range(3)], costs, margin=0.01, unit="case", footnotes=(),
        data="Task07_Pancreas", command="ulna compare", beside={},
    )  # fmt: skip


def expected(values):
    """Mean, sd over seeds and sd over cases by their definitions: (seed, case)."""
    with np.errstate(all="ignore"):
        of_cases = [np.mean(column) for column in values.T if not np.isnan(column).any()]
        of_seeds = [np.mean([v for v in row if not np.isnan(v)]) for row in values]
    return np.mean(of_cases), np.std(of_seeds, ddof=1), np.std(of_cases, ddof=1)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("better", "–"), ("worse", "–"), ("equivalent", "–"), ("cannot tell", "405"), ("too few", "405")],
)
def test_how_many_cases_would_do_is_told_of_pairs_alone_that_are_open(outcome, verdict, said):
    [pair] = outcome.pairs
    table = pair_table(replace(outcome, pairs=[replace(pair, verdict=verdict, needed=405)]))
    assert table.headings[-1] == "cases needed to see 1 point"
    assert table.rows[0][-1] == (said, "")


def test_every_class_has_its_mean_and_both_deviations(outcome, scores):
    table = class_table(outcome)
    assert table.headings[2:5] == ["Dice", "sd seeds", "sd cases"]
    assert table.headings[5:] == ["IoU", "PPV", "sensitivity", "n"]
    cells = [[cell for cell, _ in row] for row in table.rows]
    assert [(row[0], row[1]) for row in cells] == [(m, c) for m in sorted(MODELS, key=MODELS.index) for c in CLASSES]
    for row in cells:
        values = scores[MODELS.index(row[0]), :, :, CLASSES.index(row[1])]
        mean, of_seeds, of_cases = expected(values)
        assert [float(cell) for cell in row[2:5]] == pytest.approx([mean, of_seeds, of_cases], abs=6e-4)
        assert float(row[6]) == pytest.approx(mean / 2, abs=6e-5)
        assert row[8] == str(5 - int(np.isnan(values).any()))


def test_each_printed_cell_has_ours_beside_it_with_a_deviation_of_the_same_kind(outcome, scores):
    (table,) = outcome.published
    made = published_table(outcome, table)
    assert made.headings[:5] == [
        "model", "Dice of the pancreas, published", "Dice of the pancreas, here", "Dice of the tumour, published",
        "Dice of the tumour, here",
    ]  # fmt: skip
    unet, implicit = ([cell for cell, _ in row] for row in made.rows)
    mean, _, of_cases = expected(scores[0, :, :, 0])
    assert unet[:3] == ["marimont/unet", "75.8 ± 9.1", f"{100 * mean:.1f} ± {100 * of_cases:.1f}"]
    mean, _, of_cases = expected(scores[0, :, :, 1])
    assert unet[3:5] == ["35.5 ± 29.6", f"{100 * mean:.1f} ± {100 * of_cases:.1f}"]  # "cancer" is the tumour
    assert unet[5:] == ["9.2", "2.50", "59.7", "81.26", "16151", "1234"]
    assert implicit[5:] == ["6.7", "–", "44.4", "–", "11459", "–"]  # not measured here


def test_deviations_over_runs_are_those_of_the_seeds(outcome):
    table = Published("paper", "", {"dice": "Dice", "ppv": "PPV", "pooled_iou": "IoU"}, {}, "runs")
    dice = outcome.described[MODELS[0]]["dice"]
    assert measured(outcome, table, MODELS[0], "dice") == f"{100 * dice.mean:.2f} ± {100 * dice.sd_seeds:.2f}"
    ppv = outcome.described[MODELS[0]]["ppv"]
    assert measured(outcome, table, MODELS[0], "ppv") == f"{100 * ppv.mean:.2f} ± {100 * ppv.sd_seeds:.2f}"
    assert measured(outcome, table, MODELS[0], "pooled_iou") == "50.00"


def test_a_class_that_these_data_lack_is_a_dash(outcome):
    table = Published("paper", "", {"liver": "Dice of the liver"}, {}, "cases", {"liver": ["liver"]})
    assert measured(outcome, table, MODELS[0], "liver") == "–"


def test_plain_values_hold_the_classes_and_the_tables(outcome):
    values = outcome.to_json()
    assert values["by_class"][MODELS[0]]["cancer"]["dice"]["units"] == 4
    assert values["published"][0]["rows"][MODELS[0]]["tumour"] == "35.5 ± 29.6"
