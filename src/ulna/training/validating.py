"""The validation of an epoch: whole images that do not train, predicted and scored, so that one can be chosen."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ulna.evaluation.metrics import mean_known
from ulna.inference.forward import Forward
from ulna.networks.network import Network
from ulna.recipe import Plan, Recipe
from ulna.training.crew import NOBODY, Crew
from ulna.training.samples import PreparedCases
from ulna.training.validation import score_case

log = logging.getLogger(__name__)


class Validation:
    """The validation cases of a training, scored by its network as it stands.

    Args:
        network: on its device.
        plan: of the data set.
        recipe: resolved.
        cases: with their references on their own grid.
        device: of the network.
        precision: "bf16" or "fp32".
        crew: whose processes score a case each, side by side.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        recipe: Recipe,
        cases: PreparedCases,
        device: torch.device,
        precision: str,
        crew: Crew = NOBODY,
    ) -> None:
        self.network, self.recipe, self.cases, self.crew = network, recipe, cases, crew
        self.forward = Forward(network, plan, device, precision)
        self._said_empty = False

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def at_once(self) -> int:
        """How many cases are predicted side by side."""
        return self.crew.ranks.count

    def scores(
        self,
        count: int | None = None,
        *,
        before: Callable[[], object] = lambda: None,
        after: Callable[[int], bool] = lambda scored: False,
    ) -> dict[str, float]:
        """Dice and IoU on the whole images: the mean over cases of the mean over structures.

        What neither reference nor prediction holds is left out, unless the recipe says how it counts. Where nothing is left
        - no structure to find, and none marked - both are 1: the best that an epoch can do there.

        Args:
            count: of the cases, spread over them; all where it is left out.
            before: called before every case, or every few that are scored side by side.
            after: called after them, with how many are scored; where it says so, no more are.
        """
        per_case: list[dict[str, float]] = []
        chosen = self.chosen(count)
        with self.evaluating():
            for first in range(0, len(chosen), self.at_once):
                before()
                together = chosen[first : first + self.at_once]
                self.crew.tell("score", cases=together)
                per_case += [self._score(together[0]), *self.crew.answers()[: len(together) - 1]]
                if after(len(per_case)):
                    break
        means = {key: mean_known([case[key] for case in per_case]) for key in ("dice", "iou")}
        if math.isnan(means["dice"]) and not self._said_empty:
            log.warning("no validation case holds a structure: the epoch is chosen by what it does not invent alone")
            self._said_empty = True
        return {key: 1.0 if math.isnan(mean) else mean for key, mean in means.items()}

    def chosen(self, count: int | None) -> list[int]:
        """The numbers of the cases that are scored: the same ones for the same count."""
        count = len(self.cases) if count is None else min(count, len(self.cases))
        return [number * len(self.cases) // count for number in range(count)]

    def try_one(self) -> None:
        """Predict and score one case, to time it; nothing of the training changes."""
        with self.evaluating():
            self._score(0)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network predicts within; afterwards it trains as before, its frozen parts excepted as before."""
        before = [(part, part.training) for part in self.network.modules()]
        self.network.eval()
        try:
            yield
        finally:
            for part, training in before:
                part.training = training

    def _score(self, index: int) -> dict[str, float]:
        """One case, by the network in evaluation mode."""
        prepared, reference = self.cases[index]
        in_a_file = self.cases.lies_in_a_file(index)
        return score_case(self.forward, self.recipe, prepared, reference, in_a_file=in_a_file)
