"""Entry: one named network of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ulna.recipe import Architecture


@dataclass(frozen=True)
class Entry:
    """One named network.

    Args:
        architecture: the network as data.
        paper: who published it, and where in the paper.
        note: what this build is, in one line.
        published: the number of parameters that the paper prints, in millions, as printed.
        published_gmacs: the work that the paper prints, in billions of operations by the rules of ptflops, as printed.
        input: (C, *S) of the image that the figures hold for.
        maps: logit maps that the figures hold for.
        mismatch: why a printed figure is not reached; empty where all that are printed are.
        recipe: what else the network needs to train as meant, as changes of the default recipe (path -> value).
    """

    architecture: Architecture
    paper: str
    note: str
    published: str = ""
    published_gmacs: str = ""
    input: tuple[int, ...] = (1, 96, 96)
    maps: int = 1
    mismatch: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
