"""What predict.json says of a case, in a form of its own version: docs/trust.md tells every field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ulna.trust.cleaning import Changed
from ulna.trust.comparing import Comparison, Finding
from ulna.trust.dice import MEAN, Estimate, Origin
from ulna.trust.structures import Found

TRUST_FORMAT = 1


class Predicted(NamedTuple):
    """Dice without a reference.

    Args:
        origin: which answers were compared.
        calibrated: whether it was fitted on validation cases.
        estimates: class -> estimate, that of the mean over classes under `MEAN`.
        by_case: False where agreement told nothing, and every case has the mean of the validation cases.
    """

    origin: Origin
    calibrated: bool
    estimates: Mapping[str, Estimate]
    by_case: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        mean = self.estimates.get(MEAN)
        return {
            "from": self.origin,
            "calibrated": self.calibrated,
            "by_case": self.by_case,
            "mean": None if mean is None else mean.to_json(),
            "classes": {name: one.to_json() for name, one in self.estimates.items() if name != MEAN},
        }


def trust_json(
    comparison: Comparison,
    structures: Mapping[str, Found],
    unit: str,
    flags: tuple[Finding, ...],
    predicted: Predicted | None,
    changed: Mapping[str, Changed],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """Everything about one case as plain values.

    Args:
        comparison: of the image with the training data.
        structures: of the mask, as it is written.
        unit: of their volumes.
        flags: about the mask.
        predicted: None where nothing tells.
        changed: by post-processing.
        left_out: rule -> why it was not applied to the mask.
    """
    return {
        "format": TRUST_FORMAT,
        "flags": [one.to_json() for one in (*comparison.findings, *flags)],
        "compared": list(comparison.compared),
        "left_out": {**comparison.left_out, **left_out},
        "unit": unit,
        "structures": {name: found.to_json() for name, found in structures.items()},
        "predicted_dice": None if predicted is None else predicted.to_json(),
        "post_processing": {name: one._asdict() for name, one in changed.items() if any(one)},
    }
