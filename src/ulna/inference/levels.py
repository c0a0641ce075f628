"""The levels of a deep-supervised run: the smaller networks that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.errors import UsageError, unknown
from ulna.inference.segmenter import Segmenter
from ulna.networks.build import ends
from ulna.recipe import Recipe


class Level(NamedTuple):
    """A level of pruning: its name, and the head it ends at; None is the whole network, which averages its heads."""

    name: str
    head: str | None


def levels_of(run: Path, recipe: Recipe) -> list[Level]:
    """The levels of a run, smallest first; the whole network is one more where it averages its heads.

    Raises:
        UsageError: if the network has one head at the image's own size.
    """
    architecture = recipe.architecture
    if architecture.ends_at is not None:
        raise UsageError(f"{run}: is pruned already, to {architecture.ends_at}; prune the run that it came from")
    if architecture.foreign is not None:
        raise UsageError(f"{run}: its network, {architecture.foreign.source}, is one of others, which cannot be pruned")
    heads = ends(architecture)
    if len(heads) < 2:
        kept = f"only {heads[0]}, answers" if heads else "which reads all levels at once, answers"
        raise UsageError(
            f"{run}: its network has one head to end at ({kept} at the size of the image), so there is nothing to prune; "
            "train a nested network with deep supervision, such as --model unetpp --set architecture.deep_supervision=true"
        )
    levels = [Level(f"L{number}", name) for number, name in enumerate(heads, start=1)]
    return [*levels, Level("mean", None)] if architecture.readout == "mean" else levels


def named_level(levels: Sequence[Level], *, level: int | None, head: str | None) -> Level | None:
    """The level of that number or at that head; None where neither is given.

    Raises:
        UsageError: if there is none, with the nearest.
    """
    by_head = {one.head: one for one in levels if one.head is not None}
    if level is not None:
        by_number = dict(enumerate(by_head.values(), start=1))
        if level not in by_number:
            raise UsageError(f"--level: {unknown('level', level, by_number)}")
        return by_number[level]
    if head is not None and head not in by_head:
        raise UsageError(f"--head: {unknown('head', head, by_head)}")
    return None if head is None else by_head[head]


def pruned(parent: Segmenter, head: str | None) -> Segmenter:
    """The segmenter that ends at one head of another, whose weights it shares; at None the other itself."""
    if head is None:
        return parent
    recipe = parent.recipe
    architecture = recipe.architecture.replaced(ends_at=head)
    # the one head that is left has all the weight: weights by name would name heads that are gone
    recipe = recipe.replaced(architecture=architecture, loss=recipe.loss.replaced(heads="equal"))
    return Segmenter(parent.network.prune(head), parent.plan, recipe, parent.device)
