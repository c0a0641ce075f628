"""What a study found, in numbers and sentences: from the scores of its trainings to what may be concluded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.errors import UsageError
from ulna.evaluation.agreed import Agreed
from ulna.evaluation.intervals import interval_note
from ulna.evaluation.objects import merged_lesions
from ulna.study import statistics
from ulna.study.costs import Costs
from ulna.study.jobs import Job
from ulna.study.published import Published, published_for
from ulna.study.ranking import Ranking, rank_datasets
from ulna.study.scores import FURTHER, MEASURES, Row, further_of, of_measure, scored_twice
from ulna.study.subsets import of_subgroups
from ulna.system.exported import refuse_exported
from ulna.system.reading import read_json_object

OUTCOME_FILE = "outcome.json"
OF_CLASSES = ("dice", "iou", "ppv", "sensitivity")
ONE_SEED = "One seed: not evidence about the architectures, for another seed may turn the order round."
SHARED_VALIDATION = (
    "scores come from the validation cases that also chose the epoch: all networks look better than they are"
)

RIGHTLY_EMPTY = (
    "a network that rightly leaves a {unit} empty has 1 there in pairs and boxes, where another one invented something; "
    "the means of the table, the diamonds and the ranks leave it out"
)


@dataclass(frozen=True)
class Outcome:
    """Every figure of a study.

    Args:
        data: name of the data set.
        command: that repeats the study.
        models: rows, in the order they were named.
        part: which cases were scored: test, or val where the data set keeps none (or folds are used).
        unit: "case", or "patient" where several cases of one were averaged.
        units: how many of them count: those in which a reference or a prediction holds a class.
        cases: how many cases.
        seeds: trainings of every network.
        splits: hash of the split, or of every fold.
        length_unit: of HD95 and ASSD.
        margin: the smallest difference of Dice that matters.
        rows: a row per model, seed, case and class.
        scores: Dice of every model and unit that counts, mean over seeds: (models, units); see `statistics.paired`.
        described: model -> measure -> mean, deviations and interval.
        by_class: the same for every class, model -> class -> measure, of `OF_CLASSES`; nothing where there is one class.
        pairs: every two models compared.
        sentences: what the pairs say.
        warning: what must be read first; empty if nothing.
        pooled_iou: IoU over all pixels of all cases at once, mean over classes and trainings.
        epochs: trained, mean over the trainings.
        hours: of training, mean over the trainings.
        training_mb: peak memory of training, largest.
        costs: size, work, time.
        published: figures of the papers for these models on such data.
        footnotes: what differs, and how.
        ranking: over several data sets; None for one.
        further: the measures beyond `MEASURES` that every training has; they are in `described`.
        lesions: model -> class -> objects by size, over all its trainings; see `ulna.evaluation.objects.BySize`.
        subgroups: model -> field of groups.json -> scores by group, and the gap; see `ulna.evaluation.subgroups`.
        absent: rows that were asked for and are not there, with the reason.
    """

    data: str
    command: str
    models: list[str]
    part: str
    unit: str
    units: int
    cases: int
    seeds: int
    splits: list[str]
    length_unit: str
    margin: float
    rows: list[Row]
    scores: NDArray[np.float64]
    described: dict[str, dict[str, statistics.Description]]
    by_class: dict[str, dict[str, dict[str, statistics.Description]]]
    pairs: list[statistics.Pair]
    sentences: list[str]
    warning: str
    pooled_iou: dict[str, float]
    epochs: dict[str, float]
    hours: dict[str, float]
    training_mb: dict[str, float]
    costs: Costs
    published: list[Published]
    footnotes: list[str]
    ranking: Ranking | None
    ranking_sentence: str
    further: tuple[str, ...] = ()
    lesions: dict[str, dict[str, Any]] = field(default_factory=dict)
    subgroups: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "data": self.data,
            "models": self.models,
            "part": self.part,
            "unit": self.unit,
            "units": self.units,
            "cases": self.cases,
            "seeds": self.seeds,
            "splits": self.splits,
            "described": {
                model: {name: _plain(asdict(one)) for name, one in measures.items()}
                for model, measures in self.described.items()
            },
            "by_class": {
                model: {
                    name: {measure: _plain(asdict(one)) for measure, one in measures.items()}
                    for name, measures in classes.items()
                }
                for model, classes in self.by_class.items()
            },
            "pairs": [_plain(asdict(pair)) for pair in self.pairs],
            "sentences": self.sentences,
            "warning": self.warning,
            "pooled_iou": _plain(self.pooled_iou),
            "epochs": self.epochs,
            "hours": self.hours,
            "training_mb": self.training_mb,
            "costs": self.costs.to_json(),
            "published": [table.to_json() for table in self.published],
            "ranking": None if self.ranking is None else {**asdict(self.ranking), "sentence": self.ranking_sentence},
            "footnotes": self.footnotes,
            "absent": dict(self.absent),
            "command": self.command,
            "lesions": self.lesions,
            "subgroups": self.subgroups,
        }


def analyse(
    rows: Sequence[Row],
    jobs: Sequence[Job],
    costs: Costs,
    *,
    margin: float,
    unit: str,
    footnotes: Sequence[str],
    data: str,
    command: str,
    beside: Mapping[str, Mapping[str, float]],
    fields: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    absent: Mapping[str, str] | None = None,
) -> Outcome:
    """Everything that the scores say.

    Args:
        rows: of finished trainings.
        jobs: those trainings.
        costs: of their networks.
        margin: the smallest difference of Dice that matters.
        unit: what a group of cases is: "patient", "image" or, where every case is one, "case".
        footnotes: of the study.
        data: name of the data set.
        command: that repeats the study.
        beside: data set -> model -> mean Dice, of finished studies.
        fields: case -> field of groups.json -> group.
        absent: rows that are not there, with the reason.

    Raises:
        UsageError: if models were scored on other cases.
    """
    seeds, notes = len({job.seed for job in jobs}), list(footnotes)
    # a patient may have the name of another case
    groups = {row.case: f"group {row.group}" if row.group else f"case {row.case}" for row in rows}
    summaries = {job.name: job.summary() for job in jobs}
    part = next(iter(summaries.values()))["evaluated_on"]
    evaluated = next(iter(summaries.values()))[part]
    further = further_of(rows)
    agreed = Agreed.of(summaries.values())
    partly = {name for row in rows for name in row.values} - {*MEASURES, *further} - agreed.measures
    if some_alone := [*(name for name in FURTHER if name in partly), *agreed.words]:
        dropped = ", ".join(some_alone)
        notes.append(f"left out, for not all trainings have them: {dropped}; evaluation.metrics names measures for all")
    models, names, scores = statistics.per_unit(statistics.paired(of_measure(rows)), groups)
    by_measure = {measure: statistics.describe(of_measure(rows, measure), groups) for measure in (*MEASURES, *further)}
    described = {model: {measure: of[model] for measure, of in by_measure.items()} for model in models}
    pairs = statistics.compare_pairs(models, scores, margin, seeds=seeds) if len(models) > 1 else []
    dice = by_measure["dice"]
    sentences = [statistics.sentence(pair, unit + "s") + _of_seeds(pair, dice, seeds) for pair in pairs]
    if part == "val":
        notes.append(SHARED_VALIDATION)
    if scored_twice(rows):
        notes.append("folds score the same cases: a case counts once, with its mean over folds")
    left_out = len(set(groups.values())) - len(names)
    if left_out:
        notes.append(f"{left_out} {unit}s count for nothing: neither reference nor any prediction holds a class")
    if few := interval_note(len(names)):
        notes.append(few)
    alike = [job for job in jobs if "external" not in summaries[job.name]]
    notes += _cut_off(alike, summaries) + _conditions({job.name: summaries[job.name] for job in alike})
    means = {model: dice[model].mean for model in models}
    if not np.allclose(scores.mean(axis=1), list(means.values()), equal_nan=True):
        notes.append(RIGHTLY_EMPTY.format(unit=unit))
    ranking, said = _ranked(data, means, beside)
    if beside and ranking is None:
        notes.append(said)
    return Outcome(
        data=data,
        command=command,
        models=models,
        part=part,
        unit=unit,
        units=len(names),
        cases=len(groups),
        seeds=seeds,
        splits=list(dict.fromkeys(s["split_hash"] for s in summaries.values())),
        length_unit=evaluated["unit"],
        margin=margin,
        rows=list(rows),
        scores=scores,
        described=described,
        by_class=_by_class(rows, groups),
        pairs=pairs,
        sentences=sentences,
        warning=ONE_SEED if seeds == 1 and len(models) > 1 else "",
        pooled_iou={m: _pooled([summaries[j.name] for j in jobs if j.variant.name == m]) for m in models},
        epochs={m: _mean([summaries[j.name]["epochs"] for j in jobs if j.variant.name == m]) for m in models},
        hours={
            m: _mean([summaries[j.name]["training_seconds"] / 3600 for j in jobs if j.variant.name == m])
            for m in models
        },
        training_mb={m: max(summaries[j.name]["peak_memory_mb"] for j in jobs if j.variant.name == m) for m in models},
        costs=costs,
        published=published_for(data, models),
        footnotes=notes,
        ranking=ranking,
        ranking_sentence=said,
        further=further,
        lesions={m: merged_lesions([summaries[j.name] for j in jobs if j.variant.name == m]) for m in models},
        subgroups={m: of_subgroups([row for row in rows if row.model == m], fields) for m in models} if fields else {},
        absent=absent or {},
    )


def _by_class(
    rows: Sequence[Row], groups: Mapping[str, str]
) -> dict[str, dict[str, dict[str, statistics.Description]]]:
    """Model -> class -> measure -> what its scores are."""
    found: dict[str, dict[str, dict[str, statistics.Description]]] = {}
    for name in dict.fromkeys(row.classes for row in rows if row.classes != "mean"):
        for measure in OF_CLASSES:
            for model, one in statistics.describe(of_measure(rows, measure, name), groups).items():
                found.setdefault(model, {}).setdefault(name, {})[measure] = one
    return found


def _of_seeds(pair: statistics.Pair, dice: Mapping[str, statistics.Description], seeds: int) -> str:
    """A word where a difference that the cases support is no larger than what another seed may bring."""
    a, b = dice[pair.a].sd_seeds, dice[pair.b].sd_seeds
    if a is None or b is None or pair.verdict not in ("better", "worse"):
        return ""
    error = math.sqrt((a**2 + b**2) / seeds)
    if abs(pair.difference) >= 2 * error:
        return ""
    return f" But other seeds may turn it round: the means of {seeds} seeds are known to {100 * error:.2f} points only."


def _cut_off(jobs: Sequence[Job], summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The networks whose trainings ended with their time: they may not have come as far as the others."""
    cut: dict[str, list[int]] = {}
    for job in jobs:
        training, done = job.recipe.training, summaries[job.name]
        patient = (done["epochs"] - done["best_epoch"]) // training.validate_every < training.most_patience
        if training.max_hours is not None and done["epochs"] < training.most_epochs and patient:
            cut.setdefault(job.variant.name, []).append(done["epochs"])
    if not cut:
        return []
    listed = ", ".join(f"{name} after {' and '.join(map(str, epochs))} epochs" for name, epochs in cut.items())
    return [f"trainings that ended with their time, not for want of progress: {listed}"]


def _conditions(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """In what the machines of a study differed, which a study that goes on elsewhere would hide."""
    notes = []
    for what in ("device", "precision", "threads", "versions"):
        by_value: dict[str, list[str]] = {}
        for name, summary in summaries.items():
            by_value.setdefault(json.dumps(summary[what], sort_keys=True), []).append(name)
        if len(by_value) > 1:
            told = "; ".join(f"{value}: {', '.join(names)}" for value, names in by_value.items())
            notes.append(f"not all trainings had the same {what}: {told}")
    return notes


def read_beside(folders: Sequence[Path], models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean Dice of the same models in finished studies: data set -> model -> Dice.

    Raises:
        UsageError: if a folder is no finished study, or has not all models.
    """
    found: dict[str, dict[str, float]] = {}
    refuse_exported(folders, "study")
    for folder in folders:
        try:
            if not (folder / OUTCOME_FILE).exists():
                raise UsageError(f"{folder}: is no finished study (it has no {OUTCOME_FILE})")
            other = read_json_object(folder / OUTCOME_FILE)
            described = other["described"]
            missing = [model for model in models if model not in described]
            if missing:
                raise UsageError(f"{folder}: has no {missing[0]}; a ranking needs the same networks in every study")
            name = other["data"] if other["data"] not in found else f"{other['data']} ({folder})"
            without = [model for model in models if described[model]["dice"]["mean"] is None]
            if without:
                raise UsageError(f"{folder}: {without[0]} has no Dice there; a ranking needs it in every study")
            found[name] = {model: float(described[model]["dice"]["mean"]) for model in models}
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{folder}: is no finished study ({error})") from None
    return found


def _ranked(
    data: str, means: Mapping[str, float], beside: Mapping[str, Mapping[str, float]]
) -> tuple[Ranking | None, str]:
    """By the means of the tables, of this study (model -> Dice) as of those beside it."""
    models = list(means)
    if not beside:
        return None, ""
    if len(models) < 3:
        return None, f"no ranking over data sets: it needs 3 networks or more, there are {len(models)}"
    if without := [model for model in models if math.isnan(means[model])]:
        return None, f"no ranking over data sets: {without[0]} has no Dice, for it left every scored case rightly empty"
    table = [[of_model[model] for model in models] for of_model in (means, *beside.values())]
    ranking = rank_datasets(table)
    listed = ", ".join(f"{model} {rank:.2f}" for rank, model in sorted(zip(ranking.mean_ranks, models, strict=True)))
    return ranking, (
        f"Mean ranks over {', '.join([data, *beside])}: {listed}. Friedman test p = {ranking.p:.3g}; two networks differ "
        f"where their ranks lie more than {ranking.critical:.2f} apart (Nemenyi)."
    )


def _pooled(summaries: Sequence[Mapping[str, Any]]) -> float:
    """Mean pooled IoU over the classes, then over the trainings; those whose cases hold no structure have none."""
    trainings = []
    for summary in summaries:
        pooled = summary[summary["evaluated_on"]]["pooled"]
        known = [of_class["iou"] for of_class in pooled.values() if of_class["iou"] is not None]
        trainings += [_mean(known)] if known else []
    return _mean(trainings) if trainings else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN is nothing in JSON."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
