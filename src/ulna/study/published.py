"""What the papers print for the networks of a study, where they used such data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import yaml


class Published(NamedTuple):
    """The printed figures of one table.

    Args:
        paper: and table.
        protocol: in what the conditions differ from ours.
        rows: model -> figures in words, in percent as printed.
    """

    paper: str
    protocol: str
    rows: dict[str, str]


def published_for(data: str, models: Sequence[str]) -> list[Published]:
    """Tables that hold one of these models on data of such a name.

    A varied network is in a table under its whole name, such as "laird/unet loss.kind=dice".

    Example:
        >>> published_for("nuclei96", ["zhou/unet"])[0].rows
        {'zhou/unet': 'pooled IoU 90.77'}
    """
    tables = yaml.safe_load((files("ulna.study") / "published.yaml").read_text(encoding="utf-8"))
    found = []
    for table in tables:
        if not any(re.search(rf"(?<![a-z]){word}", data.lower()) for word in table["data"]):  # liver, but not delivery
            continue
        rows = {
            model: ", ".join(f"{table['measures'][name]} {figure}" for name, figure in figures.items())
            for model, figures in table["rows"].items()
            if model in models
        }
        if rows:
            found.append(Published(table["paper"], " ".join(table["protocol"].split()), rows))
    return found
