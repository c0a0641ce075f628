"""Several networks as one: their probabilities are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ulna.data.pipeline.orientation import AS_STORED, Turn
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.fold_runs import each_run
from ulna.inference.segmenter import Segmenter
from ulna.inference.spread import MOST_CLASSES, Agreement
from ulna.inference.volume import Slabs, axis_of_slabs, mean_slabs
from ulna.planning.memory import MemoryEstimate
from ulna.recipe import Plan
from ulna.system.device import to_device
from ulna.trust.calibration import in_common
from ulna.trust.dice import Origin


class Ensemble(Segmenter):
    """Several trained networks used like one: their probabilities on the image's own grid are averaged.

    Plans may differ, in spacing for example. What a single network has (`network`, `plan`, `recipe`) is that of the first.

    Args:
        members: segmenters with the same classes and channels, by the name that a message gives them.

    Raises:
        UsageError: with everything in which they differ from the first.
    """

    def __init__(self, members: Mapping[str, Segmenter]) -> None:
        (first_name, first), *others = members.items()
        common = in_common([member.calibration for member in members.values()])
        plan = first.plan
        if len({member.plan.mask_values for member in members.values()}) > 1:
            why = "class indices: the labels that these networks were trained on hold different values"
            plan = plan.replaced(mask_values=None, reasons=plan.reasons | {"mask_values": why})
        super().__init__(first.network, plan, first.recipe, first.device, common)
        self.compares: Origin | None = "folds" if len(plan.labels.foreground) <= MOST_CLASSES else None
        self.members = tuple(members.values())
        for member in self.members:
            member.tally = self.tally
        different = [
            f"{name}: {what} {theirs}, but {first_name} has {ours}"
            for name, member in others
            for (what, theirs), (_, ours) in zip(_interface(member.plan), _interface(first.plan), strict=True)
            if theirs != ours
        ]
        if different:
            raise UsageError("these runs cannot be averaged; " + "\n  ".join(different))

    def _plans(self) -> tuple[Plan, ...]:
        return tuple(member.plan for member in self.members)

    def slabs(self, volume: Volume, agreement: Agreement | None = None) -> Slabs:
        """The mean of the members' probabilities in slabs, as in `Segmenter.slabs`."""
        turn, axis = self.turn(volume), self.slab_axis(volume)
        parts = mean_slabs([_along(turn, axis, member, volume) for member in self.members], axis, agreement)
        return Slabs(parts, turn.order(volume.size), axis, turn)

    def slab_axis(self, volume: Volume) -> int:
        """The axis, turned, that the slabs lie along: that of the first member which is turned as all are."""
        turn = self.turn(volume)
        plan = next(member.plan for member in self.members if member.turn(volume) == turn)
        return axis_of_slabs(turn.order(volume.size), plan)

    def turn(self, volume: Volume) -> Turn:
        """How a volume is turned for those members that turn it; plans of format 1 do not."""
        return next((turn for member in self.members if (turn := member.turn(volume)) != AS_STORED), AS_STORED)

    def forecast(self, volume: Volume, *, probabilities: bool) -> MemoryEstimate:
        """As in `Segmenter.forecast`: windows go one after the other, every member has a slab and the image of its own."""
        each = [member.forecast(volume, probabilities=probabilities).parts for member in self.members]
        taken = {name: max(parts[name] for parts in each) for name in each[0]}
        turn = self.turn(volume)
        here = turn, self.slab_axis(volume)
        along = [(m.turn(volume), axis_of_slabs(m.turn(volume).order(volume.size), m.plan)) for m in self.members]
        whole = sum(one != here for one in along)  # these give all of theirs at once
        taken["result"] += 2 * 4 * whole * self.plan.labels.outputs * math.prod(volume.size)
        return MemoryEstimate({**taken, **{name: sum(parts[name] for parts in each) for name in ("slab", "image")}})

    def mirrored(self) -> Segmenter:
        """The same, averaging over mirrored copies of every image."""
        mirrored = Ensemble({str(number): member.mirrored() for number, member in enumerate(self.members)})
        # what was changed of the ensemble alone, such as the numbering of objects
        mirrored.recipe = self.recipe.replaced(inference=self.recipe.inference.replaced(tta=True))
        return mirrored


def _along(turn: Turn, axis: int, member: Segmenter, volume: Volume) -> Iterator[Tensor]:
    """The slabs of a member along an axis, turned; in one piece where it goes through the volume in another way itself."""
    slabs = member.slabs(volume)
    if slabs.turn == turn and slabs.axis == axis:
        yield from slabs.parts
        return
    maps = torch.from_numpy(np.ascontiguousarray(turn.forward(slabs.maps().numpy())))
    yield to_device(maps, member.device)  # where the others' are


def _interface(plan: Plan) -> tuple[tuple[str, object], ...]:
    """What a person sees of a network: dimensions, channels, classes."""
    overlapping = " (overlapping)" if plan.labels.multilabel else ""
    return (
        ("images are", f"{plan.image_dims}D"),
        ("channels are", ", ".join(plan.channel_names)),
        ("classes are", ", ".join(plan.labels.names) + overlapping),
    )


def load_runs(run: str | Path | Sequence[str | Path], *, allow_code: bool = False) -> Segmenter:
    """Read run folders alone: one, or several and the folds of a cross-validation, which make an ensemble.

    Args:
        run: one run folder or more.
        allow_code: run the code of a network of one's own (`module:FILE.py:CLASS`), which lies in the run as network.py.

    Raises:
        UsageError: if a folder holds no run, the runs have other classes or channels, or a network is code and not allowed.
    """
    return together(run, partial(Segmenter.load, allow_code=allow_code))


def together(run: str | Path | Sequence[str | Path], read: Callable[[str], Segmenter]) -> Segmenter:
    """What `read` makes of each that is named, with all folds in place of a cross-validation; several are an ensemble."""
    named = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)]
    runs = list(dict.fromkeys(map(str, each_run(named))))
    if not runs:
        raise UsageError("no run is given; name one run folder or more")
    return read(runs[0]) if len(runs) == 1 else Ensemble({name: read(name) for name in runs})
