"""One step of a training: forward, loss and backward of a batch, and the update of the weights after every few batches.

Nothing in it waits for the device, so that a GPU can repeat it as one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ulna.losses import HeadsLoss
from ulna.losses.sharing import own_part
from ulna.networks.network import Network
from ulna.system.device import autocast
from ulna.system.graphs import Recorder
from ulna.system.ranks import ALONE, Ranks
from ulna.training.compiling import compiled, explained
from ulna.training.replay import Replayed


class Step:
    """What is done with one batch after the other; after n batches weights and moments are what n plain steps make them.

    Args:
        network: on its device, trained in place.
        criterion: of its outputs.
        optimizer: of its parameters; where steps are recorded, one that is made for that.
        precision: "bf16" or "fp32".
        accumulate: batches of one update.
        clip: the largest norm of the gradients of an update; None: any.
        compile: whether torch compiles forward pass and loss as one graph of fixed shapes.
        recorder: what makes graphs of whole steps; None: every operation is launched by itself.
        ranks: that share every batch; nothing is recorded or compiled where there are several.
        batch: samples of a whole batch, where it is shared.
    """

    def __init__(
        self,
        network: Network,
        criterion: HeadsLoss,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        accumulate: int = 1,
        clip: float | None = None,
        compile: bool = False,
        recorder: Recorder | None = None,
        ranks: Ranks = ALONE,
        batch: int = 0,
    ) -> None:
        self.network, self.criterion, self.optimizer = network, criterion, optimizer
        self.ranks, self.batch = ranks, batch
        self.precision, self.accumulate, self.clip, self.compile = precision, accumulate, clip, compile
        self.parameters = list(network.parameters())
        self.device = self.parameters[0].device
        # a graph adds gradients up where they lay when it was recorded
        self._keeps_gradients = recorder is not None
        self._loss_of: Callable[..., Tensor] = compiled(self._forward) if compile else self._forward
        self._loss = torch.zeros((), device=self.device)
        self._replayed = Replayed(self._work, recorder)
        self._begun = False

    @property
    def settled(self) -> bool:
        """Whether steps from now on take as long as they will: compiled and recorded is once a training."""
        ways = (True, False) if self.accumulate > 1 else (True,)
        return all(self._replayed.settled(way=way) for way in ways) and (self._begun or not self.compile)

    def __call__(self, images: Tensor, labels: Tensor, points: Tensor | None = None, *, update: bool = True) -> Tensor:
        """One batch, and with `update` a change of the weights by the gradients since the last one.

        Args:
            images: (N, C, *S), on the device; of a batch that is shared, the samples of this rank.
            labels: (N, *S), or (N, K, *S) where classes overlap.
            points: (N, P, D) where the network is asked at points alone.
            update: whether this is the last batch of its group.

        Returns:
            The loss of the whole batch, (), good until the next step.

        Raises:
            UsageError: where the network is to be compiled and cannot be.
        """
        with searching(self.device), explained(self.compile and not self._begun):
            self._replayed(images, labels, points, way=update)
        self._begun = True
        return self._loss

    def _work(self, images: Tensor, labels: Tensor, points: Tensor | None, update: bool) -> None:
        if self.ranks.alone:
            loss = self._loss_of(images, labels, points)
            (loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
            self._loss.copy_(loss.detach())
        else:
            self._shared(images, labels, points)
        if not update:
            return
        if not self.ranks.alone:
            self.ranks.add([one.grad for one in self.parameters if one.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)  # a norm that is not finite shows in the next loss
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)

    def _shared(self, images: Tensor, labels: Tensor, points: Tensor | None) -> None:
        """The gradients of this rank's samples, as parts of those of the whole batch, and the loss of that."""
        with autocast(self.precision, self.device):
            outputs = self.network.outputs(images, points)
        loss, part = own_part(self.criterion, outputs, labels, batch=self.batch, ranks=self.ranks)
        (loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
        self._loss.copy_(part)
        self.ranks.add([self._loss])

    def _forward(self, images: Tensor, labels: Tensor, points: Tensor | None) -> Tensor:
        with autocast(self.precision, self.device):
            outputs = self.network.outputs(images, points)
        loss, _ = self.criterion(outputs, labels)
        return loss


def bounded(labels: Tensor, last: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Labels held to 0 ... `last`, and the lowest and highest before: kernels stop a GPU for good at a value beyond.

    So a value that does not fit can be said some steps late, by what the extremes tell. Nothing is waited for.
    """
    low, high = labels.aminmax()
    return (labels if labels.dtype == torch.bool else labels.clamp(0, last)), (low, high)


@contextmanager
def searching(device: torch.device) -> Iterator[None]:
    """Let cuDNN try which of its convolutions is fastest for a shape, within: those of steps never change."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
