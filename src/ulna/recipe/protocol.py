"""What a recipe says beside a training: the data that it is for, and the study that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ulna.recipe.bounds import LONGEST_AXIS, MOST_CHANNELS_AT_ALL
from ulna.recipe.model import Frozen

Text = Annotated[str, Field(max_length=500)]
# as classes.json has them: what it holds is read where data are (`ulna.data.layout.declared`)
Classes = (
    Annotated[
        dict[str | int, Any],
        Field(min_length=1, max_length=MOST_CHANNELS_AT_ALL),
        AfterValidator(lambda named: {str(key): value for key, value in named.items()}),  # YAML reads 1 as a number
    ]
    | tuple[Text, ...]
)


class Requires(Frozen):
    """The state that a data set must be in; what is left out may be anything."""

    data: Text = ""  # in words, for the message
    spatial_dims: Literal[2, 3] | None = None
    channels: int | None = Field(default=None, ge=1, le=MOST_CHANNELS_AT_ALL)
    classes: int | None = Field(default=None, ge=1, le=MOST_CHANNELS_AT_ALL)  # structures, the background not counted
    multilabel: bool | None = None
    # of every image, in pixels or voxels along the axes that the network sees
    size: tuple[Annotated[int, Field(ge=1, le=LONGEST_AXIS)], ...] | None = None

    def missed(self, found: Mapping[str, Any]) -> list[str]:
        """What is not as it must be, field by field.

        Args:
            found: `spatial_dims`, `channels`, `classes`, `multilabel`, and `size`: the smallest and the largest image.

        Example:
            >>> Requires(channels=3, size=(96, 96)).missed({"channels": 1, "size": ((96, 96), (96, 128))})
            ['requires.channels is 3, these data have 1', 'requires.size is 96x96, these images reach from 96x96 to 96x128']
        """
        wrong = [
            f"requires.{name} is {_shown(wanted)}, these data have {_shown(found[name])}"
            for name in ("spatial_dims", "channels", "classes", "multilabel")
            if (wanted := getattr(self, name)) is not None and wanted != found[name]
        ]
        if self.size is not None and any(tuple(end) != self.size for end in found["size"]):
            least, most = map(_times, found["size"])
            have = f"are {least}" if least == most else f"reach from {least} to {most}"
            wrong.append(f"requires.size is {_times(self.size)}, these images {have}")
        return wrong


class Protocol(Frozen):
    """What `ulna compare` takes where it is not told: the networks, repetitions and variations of a paper's table."""

    models: tuple[Text, ...] = ()
    vary: tuple[Text, ...] = ()
    seeds: int | None = Field(default=None, ge=1, le=1000)
    folds: int | None = Field(default=None, ge=2, le=1000)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _times(sizes: Sequence[Any]) -> str:
    return "x".join(f"{size:g}" for size in sizes)
