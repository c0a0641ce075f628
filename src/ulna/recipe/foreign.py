"""A network of others as data: where it comes from, and what it is made with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ulna.errors import UsageError, brief, printable
from ulna.recipe.bounds import LARGEST_OPTION, Steps, Voxels
from ulna.recipe.model import Frozen

KINDS = ("monai", "smp", "module")
_MOST_VALUES = 4096  # of all options together
_DEEPEST = 6


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Numbers, text and lists of them alone, none beyond all measure: a stranger may have written them."""
    for count, value in enumerate(_values(options, _DEEPEST)):
        if count == _MOST_VALUES:
            raise ValueError(f"holds more than {_MOST_VALUES:,} values")
        if isinstance(value, int | float) and not abs(value) <= LARGEST_OPTION:  # NaN is not
            raise ValueError(f"holds {brief(value)}; numbers of at most {LARGEST_OPTION:,} are taken")
        if not isinstance(value, int | float | str | None):
            raise ValueError(f"holds {brief(value)}; numbers, text, and lists of them are taken")
    return options


def _values(value: Any, deeper: int) -> Iterator[Any]:
    if not isinstance(value, Mapping | list | tuple):
        yield value
        return
    if not deeper:
        raise ValueError(f"lies more than {_DEEPEST} lists deep")
    for one in value.values() if isinstance(value, Mapping) else value:
        yield from _values(one, deeper - 1)


def _per_axis(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


Sides = Annotated[tuple[Voxels, ...], Field(min_length=1, max_length=3), BeforeValidator(_per_axis)]


class Foreign(Frozen):
    """A network of others: of MONAI, of segmentation_models.pytorch, or a class in a file of one's own.

    `source` is the name that was given for the model. `options` are keywords of its constructor. `divisor` and `least` are
    what it takes: sides that are multiples of the first, and no smaller than the second, one number or one an axis; what
    does not fit is padded outside of it. Left out, planning finds both by trying. `answer` says which of several maps of
    the size of the image is the answer, where a network gives a list of them.
    """

    source: Annotated[str, Field(max_length=1000)]
    options: Annotated[dict[str, Any], AfterValidator(_plain)] = Field(default_factory=dict)
    divisor: Annotated[Steps, BeforeValidator(_per_axis)] | None = None
    least: Sides | None = None
    answer: Literal["first", "last"] | None = None
    encoder_weights: str | None = None  # smp only: a local file, read where a training begins
    version: str | None = None  # of the library that it was made by
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # sha256 of the file that holds its class

    @model_serializer(mode="wrap")
    def _without_absent(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        return {name: value for name, value in values.items() if value is not None}

    @property
    def named(self) -> Source:
        """The parts of `source`.

        Raises:
            UsageError: if it is none.
        """
        return read_source(self.source)

    @property
    def is_code(self) -> bool:
        """Whether it is the code of a file, which runs only where a person says so."""
        return self.source.startswith("module:")


class Source(NamedTuple):
    """The parts of the name of a network of others: kind, what it is called there, and what follows (encoder, class)."""

    kind: str
    name: str
    rest: str = ""


def is_foreign(model: str) -> bool:
    """Whether a model's name is that of a network of others.

    Example:
        >>> [is_foreign(name) for name in ("monai:SegResNet", "zhou/unet", "module:net.py:Net")]
        [True, False, True]
    """
    return model.partition(":")[0] in KINDS and ":" in model


def read_source(text: str) -> Source:
    """The parts of a name.

    Raises:
        UsageError: with the form that is expected.

    Example:
        >>> read_source("smp:Unet/resnet34"), read_source("module:nets/mine.py:Net")
        (Source(kind='smp', name='Unet', rest='resnet34'), Source(kind='module', name='nets/mine.py', rest='Net'))
    """
    kind, _, name = text.partition(":")
    forms = {
        "monai": (r"(\w+)()", "monai:SegResNet"),
        "smp": (r"(\w+)/([\w.-]+)", "smp:Unet/resnet34"),
        "module": (r"(.+\.py)(?::(\w+))?", "module:path/to/file.py:Class"),
    }
    if kind in forms and (found := re.fullmatch(forms[kind][0], name)):
        return Source(kind, found[1], found[2] or "")
    wanted = forms[kind][1] if kind in forms else "monai:NAME, smp:NAME/ENCODER or module:FILE.py:CLASS"
    raise UsageError(f"{printable(text)}: expected a name such as {wanted}")
