"""`Labels`: the classes, which stored values make each of them, and which values say nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ulna.errors import counted
from ulna.recipe.bounds import MOST_CHANNELS_AT_ALL
from ulna.recipe.model import Frozen

Value = Annotated[int, Field(ge=0, lt=1 << 32, strict=True)]
Values = Annotated[tuple[Value, ...], Field(max_length=1 << 12)]


class Labels(Frozen):
    """The names of the classes, whether they exclude each other, and what the values of label maps stand for.

    `names[0]` is the background unless `multilabel`; then every name is a channel of its own. Fields that say no more than
    their defaults are not written.

    Args:
        names: of the classes.
        multilabel: classes overlap: every one is a map of 0 and 1.
        values: the stored values of every structure, in the order of `foreground`; None: the k-th is the value k.
        background: the stored values of the background.
        ignore: stored values that nobody knows the class of: no loss, no score, no sample is placed there.
        order: the value that is written for every overlapping structure, the later over the earlier, so that masks are
            one map again (nnU-Net's `regions_class_order`); None: one map a structure.
        instances: label maps number the objects of the one structure: every value but the background's is one.
    """

    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_CHANNELS_AT_ALL)] = (
        "background",
        "foreground",
    )
    multilabel: bool = False
    values: Annotated[tuple[Values, ...], Field(max_length=MOST_CHANNELS_AT_ALL)] | None = None
    background: Values = (0,)
    ignore: Values = ()
    order: Values | None = None
    instances: bool = False

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        kept = ("names", "multilabel")
        values: dict[str, Any] = serialise(self)
        return {name: v for name, v in values.items() if name in kept or getattr(self, name) != fields[name].default}

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if fault := next(_faults(self), None):
            raise ValueError(fault)
        return self

    @property
    def foreground(self) -> tuple[str, ...]:
        """The names of the structures, in the order of their values 1..K."""
        return self.names if self.multilabel else self.names[1:]

    @property
    def outputs(self) -> int:
        """Maps of the network: 1 for one structure (sigmoid), K + 1 with background for K (softmax), K if multilabel."""
        return len(self.names) if self.multilabel or len(self.names) > 2 else 1

    @property
    def ignored(self) -> int | None:
        """What stands in arrays where the class is not known: K + 1, in overlapping maps 2; None: it is known everywhere."""
        if not self.ignore:
            return None
        return 2 if self.multilabel else len(self.foreground) + 1

    @property
    def stacked(self) -> bool:
        """Whether the file of a mask holds one map a structure."""
        return self.multilabel and self.order is None

    @property
    def merges(self) -> bool:
        """Whether stored values are anything but the class indices."""
        return self.values is not None or self.background != (0,)

    @property
    def stored(self) -> tuple[tuple[int, ...], ...]:
        """The stored values of every structure."""
        if self.values is not None:
            return self.values
        return tuple((value,) for value in range(1, len(self.foreground) + 1))

    @property
    def of_masks(self) -> Labels:
        """How masks that ulna wrote are read: class indices, or the values of `order`."""
        if self.order is not None:
            return Labels(names=self.names, multilabel=True, values=self.values, order=self.order)
        return Labels(names=self.names, multilabel=self.multilabel)

    @property
    def described(self) -> tuple[str, ...]:
        """The classes as tables and messages show them, with what is not plain about them."""
        shown = [*self.names]
        if self.merges:
            stored = self.stored if self.multilabel else (self.background, *self.stored)
            plain = len(self.background) == 1 and not self.multilabel
            shown = [
                name if plain and values is self.background else f"{name} ({', '.join(map(str, values))})"
                for name, values in zip(self.names, stored, strict=True)
            ]
        if self.instances:
            shown[-1] += " (every numbered object)"
        if self.ignore:
            shown.append(f"not scored: {', '.join(map(str, self.ignore))}")
        return tuple(shown)

    def declared(self) -> dict[str, Any]:
        """The same as classes.json says it."""
        facts: dict[str, Any] = {"mode": "multilabel"} if self.multilabel else {}
        if not self.merges:
            own = {} if self.multilabel or self.names[0] == "background" else {"0": self.names[0]}
            facts["labels"] = own | {str(number): name for number, name in enumerate(self.foreground, start=1)}
        else:
            named = dict(zip(self.foreground, map(list, self.stored), strict=True))
            facts["labels"] = named if self.background == (0,) else {"background": list(self.background), **named}
        if self.order is not None:
            facts["regions_class_order"] = list(self.order)
        if self.ignore:
            facts["ignore"] = list(self.ignore)
        if self.instances:
            facts["instances"] = True
        return facts


def _faults(labels: Labels) -> Iterator[str]:
    """Why values and classes do not fit each other, the first thing first."""
    names = labels.foreground
    if not names:
        return  # the plan says it
    if labels.values is not None and len(labels.values) != len(names):
        yield f"values has {counted(len(labels.values), 'entry')} for {counted(len(names), 'structure')}"
        return
    if not labels.background or 0 not in (*labels.background, *labels.ignore):
        yield f"gives the background the values {_shown(labels.background)}; 0 is one of them, or it is ignored"
    if labels.instances and (labels.multilabel or labels.values is not None or len(names) != 1):
        yield f"says that label maps number objects (instances), and names {len(names)} classes; it takes one"
    holders: dict[int, list[str]] = {}
    for name, values in zip(names, labels.stored, strict=True):
        if not values:
            yield f"gives {name!r} no value"
        for value in dict.fromkeys(values):
            holders.setdefault(value, []).append(name)
    for value, own in holders.items():
        if value in labels.background:
            yield f"gives {own[0]!r} the value {value}, which is background"
        if len(own) > 1 and not labels.multilabel:
            yield f"gives the value {value} to {own[0]!r} and to {own[1]!r}, which exclude each other"
    for value in labels.ignore:
        if value in labels.background or value in holders:
            yield f"says that the value {value} is ignored and that it is {holders.get(value, ['background'])[0]!r}"
    if labels.order is not None:
        yield from _unordered(labels, labels.order, holders)


def _unordered(labels: Labels, order: tuple[int, ...], holders: dict[int, list[str]]) -> Iterator[str]:
    """Why one map could not say which structures overlap where."""
    names = labels.foreground
    if not labels.multilabel or labels.values is None:
        yield "has a regions_class_order, and no structures that overlap"
        return
    if len(order) != len(names):
        yield f"has a regions_class_order of {counted(len(order), 'value')} for {counted(len(names), 'structure')}"
        return
    for value, name, values in zip(order, names, labels.values, strict=True):
        if value not in values:
            yield f"writes {name!r} as {value} (regions_class_order), which is not one of its values {_shown(values)}"
            return
    for value, own in holders.items():
        written = order[names.index(own[-1])]
        if set(holders[written]) != set(own):
            others = " and ".join(map(repr, holders[written]))
            yield (
                f"has regions that do not nest: the value {value} is in {' and '.join(map(repr, own))}, and would be written "
                f"back as {written}, which is in {others} alone"
            )
            return


def _shown(values: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, values[:6]))}{', ...' if len(values) > 6 else ''}]"
