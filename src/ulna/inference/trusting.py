"""A segmenter's word on its own answers: the case against its plan, the mask against the structures of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from ulna.data.quality.intensity import Shape
from ulna.data.volume import Volume
from ulna.inference.result import Beside, Result
from ulna.inference.spread import MOST_CLASSES
from ulna.recipe import Plan, Recipe
from ulna.trust.calibration import Calibration
from ulna.trust.cleaning import Changed, clean
from ulna.trust.comparing import Comparison, compare_case
from ulna.trust.dice import MEAN, Origin, uncalibrated
from ulna.trust.report import Predicted, trust_json
from ulna.trust.structures import Found, find_structures, odd_structures, unit_of


class Comparing:
    """What a segmenter can say of a case.

    Attributes:
        plan: of the training.
        recipe: of the training.
        calibration: None for an earlier run, and for one whose training has not ended.
        compares: which answers are compared beside the prediction.
    """

    plan: Plan
    recipe: Recipe
    calibration: Calibration | None
    compares: Origin | None

    def with_copies(self) -> int:
        """Tell the Dice to expect from mirrored copies too, where the run was calibrated for them; masks stay as they are.

        Call it before the first image.

        Returns:
            How often every image is predicted.
        """
        copies = 2 ** len(self.plan.mirror_axes)
        if self.compares == "folds" or self.recipe.inference.tta or self.calibration is None or copies == 1:
            return 1
        if "copies" not in self.calibration.dice or len(self.plan.labels.foreground) > MOST_CLASSES:
            return 1
        self.compares = "copies"
        return copies

    def compare(self, volume: Volume, shapes: Sequence[Shape | None] | None = None) -> Comparison:
        """The case against the training data, before it is predicted; `shapes` of its values where they are not held."""
        return compare_case(volume, self.plan, shapes)

    def trust(self, result: Result, comparison: Comparison | None = None) -> dict[str, Any]:
        """How far a result can be trusted, as `predict.json` has it; docs/trust.md tells every field.

        Args:
            result: of this segmenter.
            comparison: of its image, where it was made already.

        Example:
            segment.trust(result)["flags"]
        """
        comparison = self.compare(result.volume) if comparison is None else comparison
        found = find_structures(result.mask, result.labels, unit_of(result.volume)[1])
        return self.trust_in(result.volume, found, result.beside, comparison)

    def trust_in(
        self, volume: Volume, found: Mapping[str, Found], beside: Beside, comparison: Comparison
    ) -> dict[str, Any]:
        """The same of a mask whose structures are known."""
        unit, _ = unit_of(volume)
        known = None if self.calibration is None else self.calibration.structures
        left_out = {}
        if known is None:
            left_out["structures"] = "the run holds no calibration.json for its weights"
        elif known.unit != unit:
            left_out["volume"] = f"the image is measured in {unit}, the training references in {known.unit}"
        flags = () if known is None else odd_structures(found, known, unit)
        predicted = self._predicted(beside)
        if predicted is None:
            left_out["predicted Dice"] = "no answers were compared, or the run was not calibrated for them"
        return trust_json(comparison, found, unit, flags, predicted, beside.changed, left_out)

    def _predicted(self, beside: Beside) -> Predicted | None:
        agreement = {} if beside.agreement is None else beside.agreement.by_class()
        if self.compares is None or not agreement:
            return None
        if self.compares == "folds":
            estimates = uncalibrated(agreement)
            return Predicted("folds", False, estimates) if estimates else None
        lines = None if self.calibration is None else self.calibration.dice.get(self.compares)
        estimates = {} if lines is None else lines.estimate(agreement)
        by_case = lines is not None and lines.mean is not None and lines.mean.slope > 0
        return Predicted(self.compares, True, estimates, by_case) if estimates else None

    def predicted_mean(self, result: Result) -> float | None:
        """The predicted mean Dice of a result; None where nothing tells."""
        predicted = self._predicted(result.beside)
        return None if predicted is None or MEAN not in predicted.estimates else predicted.estimates[MEAN].dice


def compares(recipe: Recipe, plan: Plan, calibration: Calibration | None) -> Origin | None:
    """Which answers a calibrated network compares: mirrored copies where it makes them, else its heads."""
    if calibration is None or len(plan.labels.foreground) > MOST_CLASSES:
        return None
    if recipe.inference.tta and "mirrored" in calibration.dice:
        return "mirrored"
    return "heads" if "heads" in calibration.dice else None


def clean_up(mask: NDArray[Any], volume: Volume, segmenter: Comparing) -> dict[str, Changed]:
    """Apply the post-processing of a run to a mask, in place."""
    found = segmenter.calibration
    if found is None or not found.post_processing or found.structures is None:
        return {}
    unit, voxel = unit_of(volume)
    rules = found.rules
    if unit != found.structures.unit:  # a volume in px is none in ml
        rules = {name: rule.replaced(smallest=None) for name, rule in rules.items()}
    return clean(mask, segmenter.plan.labels, rules, voxel)
