"""Weights that a training took over from another one: a lower rate for them, and an encoder that stays as it is at first."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from torch import nn

from ulna.errors import UsageError, counted, listed, printable
from ulna.networks.foreign import ForeignNetwork
from ulna.networks.network import Network
from ulna.recipe import Training
from ulna.training.optimizers import FACTOR

log = logging.getLogger(__name__)

SHOWN = 6  # names in a line of the log
COUNTED = "num_batches_tracked"  # a number of batch norm that changes no answer, and that files of old versions lack


class Taken:
    """What is done with the weights that were taken over; nothing where the recipe says nothing of them.

    Args:
        network: trained in place.
        names: of its weights, and statistics, those that were taken over.
        training: its `frozen_epochs` and `init_lr_factor`.

    Raises:
        UsageError: if the encoder is to be frozen and there is none.
    """

    def __init__(self, network: Network, names: Collection[str], training: Training) -> None:
        self.network, self.training = network, training
        self.names = frozenset(names) if uses(training) else frozenset()
        self.parts = self._whole_parts() if training.frozen_epochs else {}
        self._frozen = False

    def groups(self) -> list[dict[str, Any]]:
        """The parameters as the optimiser takes them: those that are new, and those taken over, with their lower rate."""
        named = [(name in self.names, one) for name, one in self.network.named_parameters()]
        factor = self.training.init_lr_factor
        if factor == 1:
            return [{"params": [one for _, one in named]}]
        groups = [[one for taken, one in named if taken is old] for old in (False, True)]
        return [{"params": some, **({FACTOR: factor} if old else {})} for old, some in enumerate(groups) if some]

    def hold(self, epoch: int) -> bool:
        """Freeze what is to be frozen in an epoch, from 0, of a network in training mode; whether that changed.

        What is frozen has no gradients, and its norms keep their statistics.
        """
        frozen = epoch < self.training.frozen_epochs
        if frozen:
            for part in self.parts.values():
                part.eval()
        if frozen is self._frozen or not self.parts:
            return False
        self._frozen = frozen
        for part in self.parts.values():
            part.requires_grad_(not frozen)
        return True

    def tell(self) -> None:
        """Say in the log what is done with them."""
        training = self.training
        if training.init_lr_factor != 1:
            told = counted(len(self.names), "weight")
            log.info("learning rate of the %s taken over: %g of that of the others", told, training.init_lr_factor)
        if training.frozen_epochs:
            others = [_short(name) for name in encoder_parts(self.network) if name not in self.parts]
            parts = listed([_short(name) for name in self.parts], SHOWN) if self.parts else "nothing"
            log.info(
                "frozen for %s: %s of the encoder%s", counted(training.frozen_epochs, "epoch"), parts,
                f"; not {listed(others, SHOWN)}, which is in part begun anew" if others else "",
            )  # fmt: skip

    def _whole_parts(self) -> dict[str, nn.Module]:
        """The parts of the encoder of which every weight was taken over: one that is new in part must learn."""
        own = [name for name in self.network.state_dict() if not name.endswith(COUNTED)]
        whole = {}
        for prefix, part in encoder_parts(self.network).items():
            names = [name for name in own if name.startswith(f"{prefix}.")]
            if names and self.names.issuperset(names):
                whole[prefix] = part
        return whole


def uses(training: Training) -> bool:
    """Whether a recipe says anything of weights that were taken over."""
    return bool(training.frozen_epochs) or training.init_lr_factor != 1


def encoder_parts(network: Network) -> dict[str, nn.Module]:
    """The parts of the encoder, by what the names of their weights begin with.

    Raises:
        UsageError: if a network of others has no part that is called encoder.
    """
    parts = _parts(network)
    if not parts:
        raise UsageError(
            f"training.frozen_epochs: {printable(getattr(network, 'source', 'this network'))} has no part that is called "
            "encoder; set training.init_lr_factor in its place"
        )
    return parts


def encoder_names(network: Network) -> list[str]:
    """What the names of the weights of an encoder begin with; nothing where there is none."""
    return list(_parts(network))


def _parts(network: Network) -> dict[str, nn.Module]:
    if not isinstance(network, ForeignNetwork):
        nodes = [node.name for node in network.wiring.nodes if node.path == "encoder"]
        return {f"stages.{name}": network.stages[name] for name in nodes}
    encoder = getattr(network.module, "encoder", None)
    if not isinstance(encoder, nn.Module):
        return {}
    prefix = next(name for name, one in network.named_modules() if one is encoder)
    if any(True for _ in encoder.parameters(recurse=False)) or not [*encoder.children()]:
        return {prefix: encoder}
    return {f"{prefix}.{name}": child for name, child in encoder.named_children()}


def _short(name: str) -> str:
    return printable(name.removeprefix("stages."))
