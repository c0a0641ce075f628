"""Whatever predicts behind a server, and what it must be able to do: a run with torch, an exported file without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.recipe import Plan
from ulna.system.extras import need
from ulna.system.names import is_of_the_zoo

Progress = Callable[[float], object]


class Answer(NamedTuple):
    """A mask, and what is said of it.

    Args:
        in_file: the mask as a file of that format holds it; None is the format of the image.
        trust: as `predict.json` has it.
    """

    in_file: Callable[[str | None], NDArray[Any]]
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

    def segment(self, volume: Volume, progress: Progress) -> Answer:
        """Segment one image.

        Raises:
            UsageError: if it does not fit.
        """


def load_engine(run: str, threads: int | None) -> Engine:
    """What a word names: a run folder, an exported file, or zoo:NAME.

    Raises:
        UsageError: if it cannot be read.
    """
    if is_of_the_zoo(run) or Path(run).is_file():
        from ulna.serving.exported import ExportedEngine

        return ExportedEngine(run, threads)
    try:
        from ulna.serving.trained import TrainedEngine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            f"{run}: a run folder is predicted with torch, which is not installed; export it (`ulna export`), and serve the file"
        ) from None
    return TrainedEngine(run, threads)


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
