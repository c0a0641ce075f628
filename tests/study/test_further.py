"""Further measures, lesions by size and subgroups in the tables of a study."""

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.study.test_outcome import SUMMARY
from ulna.evaluation.objects import BySize, match_objects
from ulna.study.further import further_sections
from ulna.study.outcome import analyse
from ulna.study.scores import MEASURES, read_scores, write_scores

BASE = ["case", "class", *MEASURES, "tp", "fp", "fn"]


def sizes(found):
    by_size = BySize(2, "px")
    one = np.ones(50, dtype=int)
    by_size.add(match_objects(one if found else one * 0, one), 1.0)
    return by_size.summary()


def job(folder, model, further, found=True):
    """A finished training of six cases: Dice 0.9 for site A, 0.5 for B."""
    run = folder / model
    run.mkdir()
    lines = [",".join([*BASE, *further])]
    for n in range(6):
        dice = 0.9 if n < 3 else 0.5
        lines.append(",".join([f"c{n}", "thing", *[str(dice)] * 7, "1", "1", "1", *[str(dice / 2)] * len(further)]))
    (run / "cases.csv").write_text("\n".join(lines) + "\n")
    training = SimpleNamespace(max_hours=None, most_patience=1, most_epochs=1, validate_every=1)
    test = {"unit": "px", "pooled": {"thing": {"iou": 0.5}}, "lesions": {"thing": sizes(found)}}
    return SimpleNamespace(
        name=model, seed=0, fold=None, done=True, run=run, variant=SimpleNamespace(name=model),
        recipe=SimpleNamespace(training=training), summary=lambda: {**SUMMARY, "test": test},
    )  # fmt: skip


def concluded(jobs):
    rows = read_scores(jobs, {})
    fields = {f"c{n}": {"site": "A" if n < 3 else "B"} for n in range(6)}
    outcome = analyse(
        rows, jobs, None, margin=0.01, unit="case", footnotes=(), data="here", command="ulna compare", beside={},
        fields=fields,
    )  # fmt: skip
    return outcome, rows


def test_tables_have_further_measures_lesions_and_the_gap_between_sites(tmp_path):
    outcome, rows = concluded([job(tmp_path, "a", ["pq", "cldice"]), job(tmp_path, "b", ["pq", "cldice"], found=False)])
    assert outcome.described["a"]["pq"].mean == pytest.approx(0.35)
    sections = dict(further_sections(outcome))
    assert list(sections) == ["Further measures", "Objects by size", "Subgroups"]
    assert sections["Further measures"].headings == ["model", "PQ [95 %]", "clDice [95 %]"]
    small = [[cell for cell, _ in row] for row in sections["Objects by size"].rows if row[3][0].startswith("below")]
    assert [row[:7] for row in small][::2] == [
        ["a", "thing", "0.1", "below 1024 px", "1", "1", "1.000"],
        ["b", "thing", "0.1", "below 1024 px", "1", "0", "0.000"],
    ]
    gap = outcome.subgroups["a"]["site"]["gap"]["dice"]
    assert (gap["best"], gap["worst"], round(gap["difference"], 6)) == ("A", "B", 0.4)
    assert [row[2][0] for row in sections["Subgroups"].rows][:3] == ["A", "B", "A − B"]
    write_scores(rows, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        header = next(csv.reader(file))
    assert header == ["model", "seed", "fold", "case", "group", "class", *MEASURES, "pq", "cldice"]


def test_measures_that_one_training_lacks_are_left_out_and_said(tmp_path):
    outcome, _ = concluded([job(tmp_path, "a", ["pq", "cldice"]), job(tmp_path, "b", ["pq"])])
    assert outcome.further == ("pq",)
    assert [note for note in outcome.footnotes if "not all trainings have them: cldice" in note]


def test_measures_of_a_class_that_one_fold_did_not_choose_are_left_out_and_said(tmp_path):
    """In place of a mean over the folds alone that chose them."""
    jobs = [job(tmp_path, name, ["pq", "cldice"]) for name in "ab"]
    for one, chosen in zip(jobs, (["overlap", "lesions", "cldice"], ["overlap", "cldice"]), strict=True):
        told = one.summary()
        told["test"]["measures"] = {"asked": ["auto"], "of_classes": {"thing": chosen}}
        one.summary = lambda told=told: told
    outcome, rows = concluded(jobs)
    assert outcome.further == ("cldice",) and not any("pq" in row.values for row in rows)
    assert [note for note in outcome.footnotes if "not all trainings have them: lesions of thing" in note]


def test_a_study_of_an_earlier_version_has_the_tables_of_before(tmp_path):
    outcome, _ = concluded([job(tmp_path, "a", [])])
    assert outcome.further == () and not math.isnan(outcome.described["a"]["dice"].mean)
    assert "Further measures" not in dict(further_sections(outcome))


def test_objects_are_lesions_where_lengths_are_in_mm(tmp_path):
    outcome, _ = concluded([job(tmp_path, "a", ["lesion_f1_10"]), job(tmp_path, "b", ["lesion_f1_10"], found=False)])
    for unit, title, heading in (("mm", "Lesions by size", "lesion F1"), ("px", "Objects by size", "object F1")):
        sections = dict(further_sections(replace(outcome, length_unit=unit)))
        assert title in sections and sections["Further measures"].headings[1].startswith(heading)
