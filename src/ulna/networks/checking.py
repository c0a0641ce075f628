"""Requests that no network can answer: one clear sentence each, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence

from ulna.errors import UsageError, unknown
from ulna.networks.wiring import TOPOLOGIES
from ulna.recipe import Architecture

# No image has more pixels along an axis; a network that divides by more has no map left at its deepest level.
LARGEST_DIVISOR = 2**15


def check_slots(architecture: Architecture) -> None:
    """Raise a UsageError where a slot is asked for that the topology has not, or a path that no topology has."""
    paths = {node.path for topology in TOPOLOGIES.values() for node in topology(2).nodes}
    for slot in ("conv", "skip", "up", "down"):
        for entry in getattr(architecture, slot):
            for path in entry.paths or ():
                if path not in paths:
                    raise UsageError(f"architecture.{slot}: {unknown('path', path, paths)}")
    two = TOPOLOGIES[architecture.topology](2)
    places = {
        "skip": ("has no skip connections", any(node.skips for node in two.nodes)),
        "up": ("never upsamples", any(n.source and two.node(n.source).level > n.level for n in two.nodes)),
    }
    for slot, (why, has_place) in places.items():
        entries, usual = getattr(architecture, slot), Architecture.model_fields[slot].default
        if not has_place and entries != usual:
            kinds = ", ".join(entry.kind for entry in entries)
            raise UsageError(
                f"topology {architecture.topology!r} {why}, so architecture.{slot}={kinds} has no place in it; "
                f"leave {slot} at {usual[0].kind}, or take a topology with a decoder"
            )


def check_levels(levels: int, divisor: Sequence[int]) -> None:
    """Raise a UsageError where so many levels leave nothing of any image."""
    if max(divisor) > LARGEST_DIVISOR:
        raise UsageError(
            f"{levels} levels divide an image by more than {LARGEST_DIVISOR:,} along an axis, and leave no map at the "
            "deepest; take fewer levels, or strides of 1"
        )
