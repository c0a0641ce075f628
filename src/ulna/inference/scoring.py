"""Labelled cases through a segmenter: each is predicted once, beside its reference on the grid of its image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from ulna.data.formats.label_maps import encode_labels
from ulna.data.layout.case import Case, read_reference
from ulna.data.volume import Volume
from ulna.evaluation.choice import choose, spread
from ulna.evaluation.known import known_alone
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Scores
from ulna.evaluation.units import Across
from ulna.inference.result import Result
from ulna.inference.segmenter import Segmenter
from ulna.recipe import Plan
from ulna.recipe.choices import Scoring


def predict_pair(segmenter: Segmenter, case: Case, volume: Volume | None = None) -> Pair:
    """The label map of a case and its reference, both along the axes of the file; background in both where the reference says
    that the class is not known.

    Args:
        segmenter: of a run.
        case: labelled.
        volume: its image, where it is read already.

    Raises:
        UsageError: if the image or the label map cannot be read, or does not fit the run.
    """
    return predict_result(segmenter, case, volume)[0]


def predict_result(segmenter: Segmenter, case: Case, volume: Volume | None = None) -> tuple[Pair, Result]:
    """The same, with what the segmenter says of the case."""
    volume = case.read_image() if volume is None else volume
    reference = read_reference(case, volume, segmenter.plan)
    result = segmenter.segment(volume)
    return Pair(case.id, *known_alone(result.mask, reference, segmenter.plan.labels), volume), result


def scores_for(segmenter: Segmenter, cases: Sequence[Case] = ()) -> Scores:
    """No scores yet, for the classes of a run; see `scores_of`."""
    return scores_of(segmenter.recipe.evaluation, segmenter.plan, cases)


def scores_of(scoring: Scoring, plan: Plan, cases: Sequence[Case] = ()) -> Scores:
    """No scores yet, for the classes of a plan, and with what a recipe says of empty cases.

    Args:
        scoring: of the recipe.
        plan: of the data.
        cases: that will be scored: the measures beyond overlap and surface are those that apply to their references, or that
            the recipe names. Without any, overlap and surface alone.
    """

    def looked_at() -> Iterator[NDArray[Any]]:
        for case in spread(cases):
            yield encode_labels(case.of_classes(plan.labels).read_labels(), plan.labels)

    choice = None
    if cases:
        first = cases[0].read_image()
        choice = choose(scoring.metrics, plan.labels, looked_at, volume=first, by=scoring.by, lenient=True)
    return Scores(plan.labels, scoring.empty_score, by=scoring.by, across=Across.of(plan), choice=choice)
