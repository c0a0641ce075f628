"""Blocks, heads, topologies and losses with their options, read from the registries that a recipe names them by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

# what the network gives a block, a head or a loss, and no recipe does
GIVEN = {"spatial_dims", "in_channels", "out_channels", "stride", "readout", "exclusive", "multilabel"}


def first_line(thing: Callable[..., Any]) -> str:
    """The first sentence of a docstring, fit for the cell of a table."""
    while isinstance(thing, partial):
        thing = thing.func
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def options(thing: Callable[..., Any]) -> str:
    """Keywords with their defaults, but those that are given."""
    shown = []
    for name, parameter in inspect.signature(thing).parameters.items():
        if name in GIVEN or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            continue
        value = parameter.default
        shown.append(f"`{name}={value if isinstance(value, str) else repr(value)}`")
    return ", ".join(shown)


def table(head: str, things: Mapping[str, Callable[..., Any]]) -> str:
    rows = [f"| {head} | is | options |", "|---|---|---|"]
    rows += [f"| `{name}` | {first_line(thing)} | {options(thing)} |" for name, thing in things.items()]
    return "\n".join(rows)


def page() -> str:
    """All of them, as Markdown."""
    from ulna.blocks import SLOTS
    from ulna.losses import LOSSES, SoftDice
    from ulna.networks.heads import HEADS
    from ulna.networks.wiring import TOPOLOGIES

    said = ["## Blocks\n\nAny block goes with any topology and any head."]
    said += [f"### {slot}\n\n{table('kind', blocks)}" for slot, blocks in SLOTS.items()]
    said.append(f"## Heads\n\n{table('kind', HEADS)}")
    said.append("## Topologies\n\n| name | is |\n|---|---|")
    said[-1] += "".join(f"\n| `{name}` | {first_line(made)} |" for name, made in TOPOLOGIES.items())
    losses = {**LOSSES, "dice_squared": partial(SoftDice, squared=True)}  # a lambda there, which has no signature
    said.append(f"## Losses\n\n{table('kind', losses)}")
    return "\n\n".join(said)
