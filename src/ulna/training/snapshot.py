"""All that a training goes on from: weights, moments, where it stands, and the state of random numbers.

As a checkpoint in its folder, and for the other processes of a training on several devices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ulna.errors import UsageError, brief, printable
from ulna.networks.weights import check_shapes
from ulna.recipe import parse
from ulna.system.files import Tensors
from ulna.training.checkpoint import (
    CHECKPOINTS,
    NETWORK,
    TAKEN,
    TRAINING_FORMAT,
    Progress,
    check_unfinished,
    load_checkpoint,
    pack_optimizer,
    unpack_optimizer,
)
from ulna.training.crew import Crew
from ulna.training.reproducing import environment, restore_environment
from ulna.training.state import State

_ROOM = 1 << 28  # bytes of a checkpoint beside its tensors


class Snapshot:
    """Takes and puts back all that a training goes on from.

    Args:
        network: on its device.
        optimizer: of it.
        state: where the training stands.
        device: of the network.
        precision: "bf16" or "fp32".
        taken: names of the weights that were taken over from another training.
        crew: of the training.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: State,
        *,
        device: torch.device,
        precision: str,
        taken: Collection[str],
        crew: Crew,
    ) -> None:
        self.network, self.optimizer, self.state = network, optimizer, state
        self.device, self.precision, self.taken, self.crew = device, precision, taken, crew

    def take(self) -> Tensors:
        """As it is stored."""
        optimizer_tensors, plain = pack_optimizer(self.optimizer)
        tensors = {f"{NETWORK}{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= optimizer_tensors | {"random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        values: dict[str, Any] = {"format": TRAINING_FORMAT, "loop": vars(self.state), "optimizer": plain}
        if self.taken:
            values[TAKEN] = sorted(self.taken)
        values["arithmetic"] = environment(self.device, self.precision, self.crew.threads, self.crew.ranks.count)
        return Tensors(tensors, values)

    def load(self, folder: Path) -> bool:
        """Put back the newest whole checkpoint of a run; False if no epoch was ever finished and there is none.

        Raises:
            UsageError: if this process cannot compute as the run began, no checkpoint is whole, or it is of another run.
        """
        place = folder / CHECKPOINTS
        own = self.network.state_dict()
        # weights and two moments, each in at most 8 bytes a number, and the losses of an epoch
        saved = load_checkpoint(place, largest=_ROOM + 8 * sum(tensor.nbytes for tensor in own.values()))
        if saved is None:
            check_unfinished(folder)
            return False
        check_shapes(place, own, {name: tuple(tensor.shape) for name, tensor in _weights(saved).items()})
        parse(Progress, saved.state.get("loop"), source=str(place))
        try:
            stored = saved.state.get("arithmetic", {})
            restore_environment(stored, self.device, self.precision, self.crew.ranks.count)
            self._put_back(saved)
        except UsageError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(
                f"{printable(place)}: the checkpoint does not fit the recipe.yaml beside it ({brief(str(error))}); bring "
                "both back from one copy of the run, or train again into another folder"
            ) from None
        return True

    def send(self) -> None:
        """Let all processes of the training go on from here."""
        if self.crew.ranks.alone:
            return
        from safetensors.torch import save

        taken = self.take()
        packed = save({name: tensor.cpu().contiguous() for name, tensor in taken.tensors.items()})
        self.crew.tell("begin", size=len(packed), state=taken.state)
        self.crew.ranks.send([torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(self.device)])

    def receive(self, size: int, state: Mapping[str, Any]) -> None:
        """Go on from where the first process stands.

        Args:
            size: bytes of what it sends.
            state: its plain values.
        """
        from safetensors.torch import load

        packed = torch.empty(size, dtype=torch.uint8, device=self.device)
        self.crew.ranks.send([packed])
        self._put_back(Tensors(load(packed.cpu().numpy().tobytes()), dict(state)))

    def _put_back(self, saved: Tensors) -> None:
        self.network.load_state_dict(_weights(saved))
        unpack_optimizer(self.optimizer, saved.tensors, saved.state["optimizer"])
        vars(self.state).update(saved.state["loop"])
        torch.set_rng_state(saved.tensors["random"])
        if torch.cuda.is_available() and "random_cuda" in saved.tensors:
            torch.cuda.set_rng_state(saved.tensors["random_cuda"])


def _weights(saved: Tensors) -> dict[str, torch.Tensor]:
    return {name.removeprefix(NETWORK): one for name, one in saved.tensors.items() if name.startswith(NETWORK)}
