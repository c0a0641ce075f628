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

import torch
from torch import Tensor

from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.patches import Structures
from ulna.data.pipeline.preprocess import Prepared
from ulna.errors import UsageError
from ulna.inference.segmenter import network_for
from ulna.inference.sliding import window_starts
from ulna.planning.length import BUDGETS, Budget
from ulna.planning.plan import Planned
from ulna.recipe import Plan
from ulna.system.device import device_name
from ulna.system.progress import bar
from ulna.training.loop import Loop
from ulna.training.samples import PreparedCases, Samples
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
    """As many cases as there are, all of the size of a patch and of noise, with every structure in the middle."""

    def __init__(self, plan: Plan, count: int) -> None:
        super().__init__((), plan)
        self._count = count
        image = torch.randn(plan.in_channels, *plan.patch, generator=torch.Generator().manual_seed(0))
        self._case = Prepared(image, plan.patch), made_labels(plan)
        self._where = Structures(self._case[1], plan.spatial_dims)

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
    plan, recipe = planned.plan, planned.recipe
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        cases = MadeCases(plan, len(planned.split.train))
        augment = Augment(recipe.augmentation, plan)
        samples = Samples(cases, augment=augment, foreground=recipe.training.foreground, seed=recipe.training.seed)
        network = network_for(recipe, plan)
        loop = Loop(network, plan, recipe, val=MadeCases(plan, 1), samples=samples, folder=Path(), stop=Stop(""))
        batches = itertools.chain.from_iterable(itertools.repeat(loop.feed))

        numbers = itertools.count()

        def update() -> float:
            while not loop.step.settled:  # a network is compiled and its step recorded once a training
                loop._step(*next(batches), next(numbers))

            def group() -> None:
                for _ in range(recipe.training.accumulate):
                    loop._step(*next(batches), next(numbers))

            return _timed(group)[0] / recipe.training.accumulate

        loop.network.train()
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


def hours_in_words(planned: Planned) -> str:
    """About how long a training would take here, or why that is not known."""
    try:
        timing = time_training(planned)
    except UsageError as error:
        return f"a time that is not known: {str(error).splitlines()[0]}"
    return f"about {timing.hours:,.1f} h ({timing.hours / 24:,.1f} days) on this machine, if it does not end sooner"


def windows(planned: Planned) -> float:
    """Patches that the prediction of the median image takes; a share of one where it is smaller, or taken whole."""
    plan, found = planned.plan, planned.plan.fingerprint
    spacing = plan.spacing or found.spacing.median
    lengths = zip(found.size.median, found.spacing.median, spacing, strict=True)
    grid = [max(1, round(n * own / step)) for n, own, step in lengths]
    if plan.takes_whole(grid, sparse=planned.network.head.sparse):
        return math.prod(grid) / math.prod(plan.patch)
    overlap = planned.recipe.inference.overlap
    return math.prod(len(window_starts(n, patch, overlap)) for n, patch in zip(grid, plan.patch, strict=True))


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
