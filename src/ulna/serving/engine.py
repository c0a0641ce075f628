"""Whatever predicts behind a server, and what it must be able to do: a run with torch, an exported file without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.volume import Volume
from ulna.recipe import Plan
from ulna.system.extras import need

Progress = Callable[[float], object]


class Answer(NamedTuple):
    """A mask, and what is said of it.

    Args:
        in_file: the mask as a file of that format holds it; None is the format of the image.
        mask: (*S), class indices; (K, *S) of 0 and 1 for overlapping classes.
        objects: (*S), numbers of objects; None where they were not asked for.
        trust: as `predict.json` has it.
    """

    in_file: Callable[[str | None], NDArray[Any]]
    mask: NDArray[Any]
    objects: NDArray[Any] | None
    trust: dict[str, Any]


class Engine(Protocol):
    """What a worker predicts with.

    Attributes:
        plan: of the training.
        names: of the classes and of the network, for files that say so.
        about: what is told of it: name, classes, channels.
    """

    plan: Plan
    names: About
    about: dict[str, Any]

    @property
    def numbered(self) -> bool:
        """Whether masks hold the numbers of objects."""

    def segment(self, volume: Volume, progress: Progress) -> Answer:
        """Segment one image.

        Raises:
            UsageError: if it does not fit.
        """


def about_of(plan: Plan, name: str) -> dict[str, Any]:
    """What clients are told of a network."""
    return {
        "model": name,
        "classes": list(plan.labels.foreground),
        "overlapping": plan.labels.multilabel,
        "dimensions": plan.image_dims,
        "channels": list(plan.channel_names),
    }


def runtime(module: str) -> Any:
    """A module of ulna-runtime."""
    return need(f"ulna_runtime.{module}")
