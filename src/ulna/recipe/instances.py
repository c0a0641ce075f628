"""How the objects of one structure are told apart in its mask."""

from __future__ import annotations

from pydantic import Field

from ulna.errors import UsageError, listed
from ulna.recipe.labels import Labels
from ulna.recipe.model import Frozen


class Instances(Frozen):
    """Numbered objects of the one structure: those that touch are divided where they are thin (docs/instances.md)."""

    # standard deviation of a Gaussian over the distances to the border, in voxels along the finest axis
    smooth: float = Field(default=1.0, ge=0, le=100)
    # two parts are two objects if the neck between them is thinner than the smaller part, at its thickest, by this share
    depth: float = Field(default=0.1, ge=0, le=1)
    smallest: int = Field(default=0, ge=0)  # voxels; objects of fewer are left out


def check_one_structure(labels: Labels, named: str) -> None:
    """Refuse to number the objects of several structures in one map.

    Args:
        labels: the classes.
        named: what asks for it, for the message.

    Raises:
        UsageError: unless there is one structure.
    """
    if len(labels.foreground) == 1 and not labels.multilabel:
        return
    raise UsageError(
        f"{named}: numbers the objects of one structure, and these labels name {listed(labels.foreground, 4)}"
        f"{', which may overlap' if labels.multilabel else ''}; leave it out, or make one class of them in classes.json"
    )
