"""How long a training would take on this machine, from a few of its steps on made data."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulna.data.pipeline.patches import Structures
from ulna.data.pipeline.preprocess import Prepared
from ulna.data.pipeline.slices import stacked
from ulna.errors import UsageError
from ulna.inference.segmenter import network_for
from ulna.inference.sliding import count_windows
from ulna.inference.volume import window_of
from ulna.planning.grid import median_grid
from ulna.planning.length import BUDGETS, Budget
from ulna.planning.plan import Planned
from ulna.recipe import Plan
from ulna.system.device import device_name
from ulna.system.progress import bar
from ulna.training.loop import Loop
from ulna.training.samples import PreparedCases
from ulna.training.slices import SliceCases, samples_of
from ulna.training.stopping import Stop

STEPS = 6  # timed at most; the first warms up, where there is time for another
LONGEST_S = 20.0  # no step is begun after so long


@dataclass(frozen=True)
class Timing:
    """An estimate of a whole training, without reading the data and the final evaluation.

    Args:
        device: what computed, by its name.
        threads: of torch; None on a GPU.
        step_s: a step of the training, its samples included.
        validation_s: the prediction of all validation cases, its share of an epoch.
        steps: of an epoch.
        epochs: at most.
        max_hours: at most, as the recipe says.
    """

    device: str
    threads: int | None
    step_s: float
    validation_s: float
    steps: int
    epochs: int
    max_hours: float | None

    @property
    def epoch_s(self) -> float:
        """All steps of an epoch and its validation."""
        return self.steps * self.step_s + self.validation_s

    @property
    def hours(self) -> float:
        """All epochs, or as many as there is time for: a training that gets no better ends sooner."""
        hours = self.epochs * self.epoch_s / 3600
        return hours if self.max_hours is None else min(hours, self.max_hours)

    @property
    def budgets(self) -> dict[str, float]:
        """The hours that the same training would take at most with each budget."""
        return {name: self._with(budget).hours for name, budget in BUDGETS.items()}

    def _with(self, budget: Budget) -> Timing:
        return replace(self, steps=budget.steps, epochs=budget.epochs, max_hours=budget.max_hours)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"hours": self.hours, "epoch_s": self.epoch_s, "budgets": self.budgets, **asdict(self)}


class MadeCases(PreparedCases):
    """As many cases as there are, all of the size of a patch and of noise, with every structure in the middle.

    Volumes that are seen as slices have one.
    """

    def __init__(self, plan: Plan, count: int) -> None:
        super().__init__((), plan)
        self._count = count
        image = torch.randn(plan.in_channels, *plan.patch, generator=torch.Generator().manual_seed(0))
        labels = made_labels(plan)
        self._where = Structures(labels, plan.spatial_dims)
        if plan.slices is not None:
            image, labels = image.unsqueeze(plan.slices.axis + 1), labels.unsqueeze(plan.slices.axis - 3)
        self._case = Prepared(image, tuple(image.shape[1:])), labels

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Prepared, Tensor]:
        return self._case

    def keeps(self, index: int) -> bool:
        """All are the one that is there."""
        return True

    def structures(self, index: int) -> Structures:
        """The same in all."""
        return self._where


class MadeSlices(SliceCases):
    """As many slices as the training cases have, all of the size of a patch and of noise."""

    def __init__(self, plan: Plan) -> None:
        super().__init__((), plan)
        made, slices = MadeCases(plan, 1), self.slices
        prepared, labels = made[0]
        labels = labels.movedim(slices.axis - 3, 0)
        self._made = prepared._replace(image=stacked(prepared.image, slices.axis, slices.neighbours)), labels
        self._where = made.structures(0)
        # cached properties of cases that were read
        self.places = np.zeros((max(1, slices.full_count + slices.empty_count), 2), np.int64)
        self.full_count = slices.full_count

    def __getitem__(self, index: int) -> tuple[Prepared, Tensor]:
        return self._made

    def keeps(self, index: int) -> bool:
        """All are the one that is there."""
        return True

    def structures_of(self, index: int, place: int) -> Structures:
        """The same in all."""
        return self._where


def made_labels(plan: Plan) -> Tensor:
    """(*S) of a patch, or (K, *S) where classes overlap: the middle of every axis, shared out among the structures."""
    structures, rows = len(plan.labels.foreground), plan.patch[0]
    values = 1 + torch.arange(rows) * structures // rows
    inside = torch.zeros(plan.patch, dtype=torch.bool)
    inside[tuple(slice(n // 4, n - n // 4) for n in plan.patch)] = True
    labels = inside * values.reshape(-1, *[1] * (len(plan.patch) - 1))
    if plan.labels.multilabel:
        labels = torch.stack([labels == value for value in range(1, structures + 1)])
    return labels.to(torch.uint8 if structures < 256 else torch.int32)


def time_training(planned: Planned) -> Timing:
    """Make steps of this training on made data of the patch's shape, and one validation; nothing is written.

    Raises:
        UsageError: if a step fails as it would in the training.
    """
    recipe = planned.recipe
    with torch.random.fork_rng():
        loop, step = _made(planned)
        group = recipe.training.accumulate  # of steps, of which the last one also updates

        def steps() -> None:
            for _ in range(group):
                step()

        def update() -> float:
            step.settle()
            return _timed(steps)[0] / group

        step_s = median(_several(lambda _: update(), "timing steps"))
        validated = median(_several(lambda number: _timed(loop.validate)[0], "timing a validation"))
    return Timing(
        device=device_name(),
        threads=None if torch.cuda.is_available() else torch.get_num_threads(),
        step_s=step_s,
        validation_s=validated * windows(planned) * len(planned.split.val) / recipe.training.validate_every,
        steps=loop.batches.steps,
        epochs=recipe.training.most_epochs,
        max_hours=recipe.training.max_hours,
    )


def time_steps(planned: Planned, *, most: int, longest_s: float) -> tuple[float, int]:
    """Seconds of so many steps of this training on made data, after a first one that does not count, and how many there were.

    Args:
        planned: the training.
        most: steps.
        longest_s: after so long no further step begins.
    """

    def steps() -> int:
        begin, made = time.perf_counter(), 0
        while made < most and (made == 0 or time.perf_counter() - begin <= longest_s):
            step()
            made += 1
        return made

    with torch.random.fork_rng():
        _, step = _made(planned)
        step.settle()
        _timed(step)
        return _timed(steps)


class _Steps:
    """The steps of a training, one a call."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._batches = itertools.chain.from_iterable(itertools.repeat(loop.feed))
        self._numbers = itertools.count()

    def __call__(self) -> None:
        self._loop._step(*next(self._batches), next(self._numbers))

    def settle(self) -> None:
        """A network is compiled and its step recorded once a training."""
        while not self._loop.step.settled:
            self()


def _made(planned: Planned) -> tuple[Loop, _Steps]:
    """A training on made data, and its steps."""
    plan, recipe = planned.plan, planned.recipe
    torch.manual_seed(recipe.training.seed)
    made = MadeCases(plan, len(planned.split.train)) if plan.slices is None else MadeSlices(plan)
    samples = samples_of(made, plan, recipe)
    network = network_for(recipe, plan)
    loop = Loop(network, plan, recipe, val=MadeCases(plan, 1), samples=samples, folder=Path(), stop=Stop(""))
    loop.network.train()
    return loop, _Steps(loop)


def hours_in_words(planned: Planned) -> str:
    """About how long a training would take here, or why that is not known."""
    try:
        timing = time_training(planned)
    except UsageError as error:
        return f"a time that is not known: {str(error).splitlines()[0]}"
    return f"about {timing.hours:,.1f} h ({timing.hours / 24:,.1f} days) on this machine, if it does not end sooner"


def windows(planned: Planned) -> float:
    """Patches that the prediction of the median image takes; a share of each where it is smaller, or taken whole."""
    plan, whole = planned.plan, median_grid(planned.plan)
    grid = tuple(whole[axis] for axis in plan.patch_axes)
    slices = 1 if plan.slices is None else whole[plan.slices.axis]
    sparse = planned.network.head.sparse
    if plan.takes_whole(grid, sparse=sparse):
        return slices * math.prod(grid) / math.prod(plan.patch)
    window = plan.patch if sparse else window_of(plan, grid, sparse=False)  # patches of points are filled up
    share = math.prod(window) / math.prod(plan.patch)
    return slices * share * count_windows(grid, plan.patch, planned.recipe.inference.overlap)


def _several(make: Callable[[int], Any], what: str) -> list[Any]:
    """What is made again and again, without the first, for as long as there is time."""
    made, start = [], time.perf_counter()
    with bar(what, STEPS) as advance:
        for number in itertools.count():
            made.append(make(number))
            advance()
            if len(made) >= STEPS or time.perf_counter() - start > LONGEST_S:
                break
    return made[1:] or made


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, with what the device still does, and what came out."""
    start = time.perf_counter()
    done = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, done
