"""What the papers print for the networks of a study, where they used such data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any, Literal

import yaml

PERCENT = ("dice", "iou", "pooled_iou", "ppv", "sensitivity")
COSTS = ("image_s", "steps_s", "steps_mb")  # seconds an image; seconds and MB of a hundred training steps


@dataclass(frozen=True)
class Published:
    """The printed figures of one table.

    Args:
        paper: and table.
        protocol: in what the conditions differ from ours.
        measures: what is printed -> its heading: of `PERCENT` and `COSTS`, or Dice of a class.
        rows: model -> measure -> as printed, scores in percent.
        spread: what a printed deviation is of; empty where none is printed.
        classes: a class that is a measure -> words of which the name of ours holds one.
    """

    paper: str
    protocol: str
    measures: dict[str, str]
    rows: dict[str, dict[str, str]]
    spread: Literal["", "runs", "cases"] = ""
    classes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def with_costs(self) -> bool:
        """Whether it prints what an image or a hundred steps take."""
        return any(name in COSTS for name in self.measures)

    def name_of(self, measure: str, ours: Iterable[str]) -> str | None:
        """The one of our classes that a measure is of; None where it is of none, or none is called so."""
        words, names = self.classes.get(measure, ()), list(ours)
        exactly = [name for name in names if name.lower() in words]
        found = exactly or [name for name in names if any(word in name.lower() for word in words)]
        return found[0] if len(found) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def published_for(data: str, models: Sequence[str]) -> list[Published]:
    """Tables that hold one of these models on data of such a name.

    A varied network is in a table under its whole name, such as "laird/unet loss.kind=dice".

    Example:
        >>> published_for("nuclei96", ["zhou/unet"])[0].rows
        {'zhou/unet': {'pooled_iou': '90.77'}}
    """
    tables = yaml.safe_load((files("ulna.study") / "published.yaml").read_text(encoding="utf-8"))
    found = []
    for table in tables:
        if not any(re.search(rf"(?<![a-z]){word}", data.lower()) for word in table["data"]):  # liver, but not delivery
            continue
        rows = {model: dict(figures) for model, figures in table["rows"].items() if model in models}
        if rows:
            found.append(
                Published(
                    table["paper"],
                    " ".join(table["protocol"].split()),
                    table["measures"],
                    rows,
                    table.get("spread", ""),
                    table.get("classes", {}),
                )
            )
    return found
