"""The files of a study: results.csv, table.md, table.tex, figures/ and report.html."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulna.data.layout.case import read_reference
from ulna.data.layout.dataset import Dataset
from ulna.errors import counted, printable_text
from ulna.evaluation import figures
from ulna.evaluation.drawn import LARGEST, DrawnCase, ShownCase
from ulna.evaluation.known import known_alone
from ulna.evaluation.views import view
from ulna.inference.segmenter import Segmenter
from ulna.pages.embedding import address, css
from ulna.pages.templates import page
from ulna.study import drawings
from ulna.study.costs import conditions_in_words
from ulna.study.further import further_sections
from ulna.study.jobs import Job
from ulna.study.outcome import Outcome
from ulna.study.printed import Table, class_table, published_table
from ulna.study.printed import figure as _figure
from ulna.study.published import Published
from ulna.study.scores import Row, write_scores
from ulna.system.files import write_text
from ulna.version import version

SHOWN_WORST = 4
SHOWN = ("dice", "iou", "ppv", "sensitivity", "hd95")
ACCURACY = range(3, 12)  # columns of the main table
PLOTS = ("cases", "tradeoff", "curves", "ranks")
PICTURES_BYTES = 900_000  # of all cases on the page together
OPEN = ("cannot tell", "too few")  # verdicts for which more cases would help
METHOD = (
    "Pairs: Wilcoxon signed-rank test on {unit} means over seeds, p by Holm over all pairs; 95 % bootstrap intervals; "
    "equivalent: within {margin} of Dice by two one-sided tests. n {unit}s count, in which reference or prediction holds a "
    "class; in a pair, a network that rightly left one empty has 1 there. A test speaks of further {unit}s for these "
    "trainings; the deviation over seeds shows how far another training may lie."
)


def write_outputs(outcome: Outcome, jobs: Sequence[Job], dataset: Dataset, out: Path) -> None:
    """Write everything that people take from a study.

    Args:
        outcome: what was found.
        jobs: the finished trainings of ulna's own.
        dataset: for pictures of the hardest cases.
        out: the study folder.
    """
    write_scores(outcome.rows, out / "results.csv")
    worst = _draw(outcome, jobs, dataset, out / "figures")
    write_text(out / "table.md", printable_text(markdown(outcome)))
    write_text(out / "table.tex", printable_text(latex(outcome)))
    write_text(out / "report.html", _page(outcome, out / "figures", worst))


def main_table(outcome: Outcome) -> Table:
    """Accuracy and cost, a row a network."""
    headings = ["model", "parameters", "GMACs", "Dice [95 %]", "n", "both empty", "sd seeds", f"sd {outcome.unit}s", "IoU",
                "PPV", "sensitivity", f"HD95 {outcome.length_unit}", "epochs", "hours",
                "p50 / p95 ms", "CPU ms", "train MB", "predict MB"]  # fmt: skip
    as_printed = any(cost.image_s is not None for cost in outcome.costs.models.values())
    rows = []
    for model in outcome.models:
        dice, iou, ppv, sensitivity, hd95 = (outcome.described[model][name] for name in SHOWN)
        cost = outcome.costs.models[model]
        rows.append(
            [
                (model, ""),
                ("–" if cost.parameters is None else f"{cost.parameters:,}", ""),
                (f"{cost.gmacs:.3g}" if math.isfinite(cost.gmacs) else "–", ""),
                (_figure(dice.mean, 4), f"[{_figure(dice.low, 4)}, {_figure(dice.high, 4)}]"),
                (f"{dice.units}", ""),
                (f"{dice.undefined}", ""),
                (_figure(dice.sd_seeds, 4), ""),
                (_figure(dice.sd_units, 3), ""),
                (_figure(iou.mean, 4), ""),
                (_figure(ppv.mean, 4), ""),
                (_figure(sensitivity.mean, 4), ""),
                (_figure(hd95.mean, 2), ""),
                (f"{outcome.epochs[model]:.0f}", ""),
                (f"{outcome.hours[model]:.2f}", ""),
                (" / ".join(_figure(ms, 1) for ms in cost.wall_ms), ""),
                (_figure(cost.cpu_ms, 1), ""),
                (f"{outcome.training_mb[model]:.0f}", ""),
                ("–" if cost.prediction_mb is None else f"{cost.prediction_mb:.0f}", ""),
            ]
        )
        if as_printed:
            rows[-1] += [
                (_figure(cost.image_s, 3), ""),
                (_figure(cost.steps_s, 1), ""),
                (_figure(cost.steps_mb, 0), ""),
            ]
    headings += ["s / image", "100 steps s", "100 steps MB"] * as_printed
    rows += [[(name, ""), ("not there", ""), *[("–", "")] * (len(headings) - 2)] for name in outcome.absent]
    return Table(headings, rows)


def pair_table(outcome: Outcome) -> Table:
    """Every pair: difference, tests, effect size; and, of those that cannot be told apart, how many cases would do."""
    headings = [
        "pair",
        "difference of Dice [95 %]",
        "p",
        "p (Holm)",
        "effect [95 %]",
        "verdict",
        f"{outcome.unit}s needed to see {_points(outcome.margin)}",
    ]
    rows = [
        [
            (f"{pair.a} − {pair.b}", ""),
            (f"{pair.difference:+.4f} [{_figure(pair.low, 4)}, {_figure(pair.high, 4)}]", ""),
            (_probability(pair.p), ""),
            (_probability(pair.p_holm), ""),
            (f"{_figure(pair.effect, 2)} [{_figure(pair.effect_low, 2)}, {_figure(pair.effect_high, 2)}]", ""),
            (pair.verdict, ""),
            ("–" if pair.needed is None or pair.verdict not in OPEN else f"{pair.needed:,}", ""),
        ]
        for pair in outcome.pairs
    ]
    return Table(headings, rows)


def markdown(outcome: Outcome) -> str:
    """table.md."""
    parts = [f"# {title(outcome)}", subtitle(outcome)]
    if outcome.warning:
        parts.append(f"**{outcome.warning}**")
    parts += ["\n".join(f"- {sentence}" for sentence in outcome.sentences), _markdown(main_table(outcome)),
              conditions_in_words(outcome.costs.conditions)]  # fmt: skip
    if (classes := class_table(outcome)).rows:
        parts += ["## Classes", _markdown(classes)]
    for heading, table in further_sections(outcome):
        parts += [f"## {heading}", _markdown(table)]
    if outcome.pairs:
        parts += ["## Pairs", _markdown(pair_table(outcome)), method(outcome)]
    if outcome.ranking is not None:
        parts += ["## Over several data sets", outcome.ranking_sentence]
    if outcome.published:
        parts.append("## Published beside measured")
        for printed in outcome.published:
            parts += [_markdown(published_table(outcome, printed)), f"{printed.paper}: {_said_of(printed)}."]
    parts += ["## Footnotes", "\n".join(f"- {note}" for note in outcome.footnotes), f"```\n{outcome.command}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(outcome: Outcome) -> str:
    """table.tex: the main table, for booktabs."""
    table = main_table(outcome)
    lines = [
        "% " + subtitle(outcome),
        "\\begin{tabular}{l" + "r" * (len(table.headings) - 1) + "}",
        "\\toprule",
        " & ".join(map(_escaped, table.headings)) + " \\\\",
        "\\midrule",
        *(" & ".join(_escaped(_joined(cell)) for cell in row) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def title(outcome: Outcome) -> str:
    """Of page and table."""
    networks = counted(len(outcome.models), "network") + " compared" * (len(outcome.models) > 1)
    return f"{outcome.data}: {networks}"


def subtitle(outcome: Outcome) -> str:
    """How much was measured."""
    seeds = counted(outcome.seeds, "seed")
    of = f" of {counted(outcome.cases, 'case')}" if outcome.unit != "case" else ""
    hashes = ", ".join(outcome.splits)
    return f"{counted(outcome.units, outcome.unit)}{of} ({outcome.part}), {seeds}, all trained alike; split {hashes}"


def method(outcome: Outcome) -> str:
    """The tests, in one line."""
    return METHOD.format(unit=outcome.unit, margin=_points(outcome.margin))


def _points(value: float) -> str:
    number = f"{100 * value:g}"
    return f"{number} point" if number == "1" else f"{number} points"


def _draw(outcome: Outcome, jobs: Sequence[Job], dataset: Dataset, folder: Path) -> list[DrawnCase]:
    """The files of `figures/`; and the cases that the page shows itself."""
    models = outcome.models
    means = [outcome.described[model]["dice"].mean for model in models]
    drawings.boxes(models, outcome.scores, means, outcome.unit, folder / "cases.png")
    points = []
    for model in models:
        dice, cost = outcome.described[model]["dice"], outcome.costs.models[model]
        points.append(drawings.Point(model, dice.mean, dice.low, dice.high, cost.gmacs, cost.wall_ms[0]))
    drawings.tradeoff(points, folder / "tradeoff.png")
    own = list(dict.fromkeys(job.variant.name for job in jobs))
    curves = {m: [_curve(job.run / "metrics.csv") for job in jobs if job.variant.name == m] for m in own}
    drawings.learning(curves, folder / "curves.png")
    if outcome.ranking is not None:
        drawings.ranks(models, outcome.ranking, folder / "ranks.png")
    return _draw_worst(outcome, jobs, dataset, folder / "worst.png")


def _draw_worst(outcome: Outcome, jobs: Sequence[Job], dataset: Dataset, path: Path) -> list[DrawnCase]:
    """The cases with the lowest mean Dice over all networks, as the first training of each saw them.

    None where of a network no weights are left.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        if job.has_weights:
            first.setdefault(job.variant.name, job)
    if {job.variant.name for job in jobs} - first.keys():
        path.unlink(missing_ok=True)
        return []
    scored = {m: _of_images(outcome.rows, m, job) for m, job in first.items()}
    common = set.intersection(*(set(of) for of in scored.values()))
    hard = {case: np.nan_to_num([of[case] for of in scored.values()], nan=1.0).mean() for case in common}  # NaN: empty
    chosen = sorted(common, key=lambda case: (hard[case], case))[:SHOWN_WORST]
    cases: list[drawings.Hard] = []
    masks: dict[str, list[Any]] = {model: [] for model in first}
    segmenters = {model: Segmenter.load(job.run) for model, job in first.items()}
    plan = next(iter(segmenters.values())).plan
    for name in chosen:
        case = dataset.case(name)
        volume = case.read_image()
        reference = read_reference(case, volume, plan)
        answers = [known_alone(segmenter.mask(volume), reference, plan.labels) for segmenter in segmenters.values()]
        seen = view(volume, answers[0][1], *(mask for mask, _ in answers))
        cases.append(drawings.Hard(name, seen.image, seen.maps[0], seen.sides))
        for model, mask in zip(segmenters, seen.maps[1:], strict=True):
            masks[model].append(mask)
    return drawings.worst(cases, masks, {m: [scored[m][name] for name in chosen] for m in first}, path)


def _of_images(rows: Sequence[Row], model: str, job: Job) -> dict[str, float]:
    """Image -> mean Dice in one training; over its slices, where these are scored."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.model, row.seed, row.fold, row.classes) == (model, job.seed, job.fold, "mean"):
            found.setdefault(row.image or row.case, []).append(row.values["dice"])
    known = {image: [dice for dice in of if not np.isnan(dice)] for image, of in found.items()}
    return {image: float(np.mean(of)) if of else np.nan for image, of in known.items()}


def _curve(path: Path) -> list[tuple[int, float]]:
    """(epoch, Dice) of the epochs that were validated."""
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return [(int(row["epoch"]), float(row["val_dice"])) for row in rows if row["val_dice"]]


def _page(outcome: Outcome, folder: Path, worst: Sequence[DrawnCase]) -> str:
    plots: dict[str, str] = {}
    for name in PLOTS:
        file = folder / f"{name}.png"
        found = file.exists() and (name != "ranks" or outcome.ranking is not None)
        plots[name] = address(file.read_bytes(), "png") if found else ""
    most = PICTURES_BYTES // max(1, sum(len(case.pictures) for case in worst))
    table, pairs = main_table(outcome), pair_table(outcome)
    published = [
        {"table": published_table(outcome, table), "said": f"{table.paper}: {_said_of(table)}"}
        for table in outcome.published
    ]
    verdicts = [pair.verdict for pair in outcome.pairs] + [""] * len(outcome.sentences)
    values: dict[str, Any] = {
        "title": title(outcome),
        "subtitle": subtitle(outcome),
        "warning": outcome.warning,
        "said": list(zip(verdicts, outcome.sentences, strict=False)),
        "method": method(outcome),
        "accuracy": _columns(table, lambda at: at == 0 or at in ACCURACY),
        "cost": _columns(table, lambda at: at not in ACCURACY),
        "conditions": conditions_in_words(outcome.costs.conditions),
        "plots": plots,
        "worst": [ShownCase.of(case, min(LARGEST, most)) for case in worst],
        "errors": [(meaning, css(colour)) for meaning, colour in figures.LEGEND],
        "pairs": pairs,
        "ranking": outcome.ranking_sentence,
        "classes": class_table(outcome),
        "sections": further_sections(outcome),
        "published": published,
        "footnotes": outcome.footnotes,
        "command": outcome.command,
        "version": version("ulna"),
    }
    return page("ulna.study", "comparison.html").render(values)


def _columns(table: Table, wanted: Callable[[int], bool]) -> Table:
    """Some columns of a table: all of them are wider than a page."""
    kept = [at for at in range(len(table.headings)) if wanted(at)]
    return Table([table.headings[at] for at in kept], [[row[at] for at in kept] for row in table.rows])


def _said_of(table: Published) -> str:
    """Its conditions, and what our deviations are of."""
    ours = {"runs": "over seeds", "cases": "over cases"}.get(table.spread, "over seeds, where there are several")
    return f"{table.protocol}; scores in %, our deviations {ours}"


def _markdown(table: Table) -> str:
    lines = ["| " + " | ".join(table.headings) + " |", "|" + "---|" * len(table.headings)]
    lines += ["| " + " | ".join(_joined(cell).replace("|", "\\|") for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


def _joined(cell: tuple[str, str]) -> str:
    return " ".join(part for part in cell if part)


_LATEX = str.maketrans(
    {sign: "\\" + sign for sign in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "−": "$-$", "–": "--"}
)


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


def _probability(p: float) -> str:
    return "–" if not math.isfinite(p) else ("< 0.0001" if p < 1e-4 else f"{p:.4f}")
