"""A network on the windows of images: how many go together, in what precision, and whether from a CUDA graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ulna.inference.replay import Replayed
from ulna.inference.spread import count_agreement
from ulna.networks.network import Network
from ulna.planning.memory import maps_per_voxel
from ulna.recipe import Plan
from ulna.system.device import autocast
from ulna.system.graphs import Recorder, graphs_for

log = logging.getLogger(__name__)

SHARE = 0.5  # of the free memory of a GPU that windows may take
MARGIN = 1.6  # what a window takes, times its maps: working space of the libraries
MOST_VOXELS = 1 << 23  # of a batch: larger ones are no faster


class Forward:
    """A network and how it is run. Keep it from image to image: graphs are recorded once.

    Weights may change in place between two calls.

    Args:
        network: in evaluation mode, on the device.
        plan: of its training.
        device: where the windows are computed.
        precision: "fp32" or "bf16".
        recorder: makes graphs of the network; by default CUDA graphs on a GPU, where the head reads no points.
        heads: whether the heads of the network are compared with its answer, see `counted`.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        device: torch.device,
        precision: str = "fp32",
        recorder: Recorder | None = None,
        *,
        heads: bool = False,
    ) -> None:
        self.heads = heads
        self.network, self.plan, self.device, self.precision = network, plan, device, precision
        if recorder is None and not network.head.sparse:  # how many points are read follows from their values
            recorder = graphs_for(device, draws=False)
        self._logits = Replayed(self._eager, recorder)
        self._most = math.inf  # windows together, after memory ran out
        self._together: dict[tuple[int, ...], int] = {}

    def logits(self, windows: Tensor) -> Tensor:
        """(N, C, *S) -> (N, K, *S); good until the next call."""
        return self.counted(windows)[0]

    def counted(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """`logits`, and with `heads` how much every head agrees with them: (N, 2, classes), see `count_agreement`."""
        answer = self._logits(windows)
        if not self.heads:
            return answer, None
        classes = len(self.plan.labels.foreground)
        maps, counts = answer[:, : -2 * classes], answer[:, -2 * classes :]
        size = (len(windows), self.plan.labels.outputs, *windows.shape[2:])
        return maps.reshape(size), counts.reshape(len(windows), 2, classes)

    def together(self, patch: Sequence[int]) -> int:
        """How many windows of a size are computed at once: what the free memory of a GPU holds, and one on a CPU.

        More than one at a time make a CPU no faster, and take it more memory.
        """
        size = tuple(patch)
        if size not in self._together:  # once, for graphs take of what is free, and are for batches of one size
            self._together[size] = self._fitting(math.prod(size))
        return int(min(self._together[size], self._most))

    def within_memory(self, ask: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        """`ask` of all windows together, or of fewer at a time where the GPU's memory does not hold them."""
        if len(windows) <= self._most:
            try:
                return ask(windows)
            except torch.cuda.OutOfMemoryError:
                if len(windows) == 1:
                    raise
                self._most = len(windows) // 2
                log.info("out of GPU memory with %d windows at once; from now on %d", len(windows), self._most)
            self._logits.forget()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return torch.cat([self.within_memory(ask, part) for part in torch.split(windows, int(self._most))])

    def _fitting(self, voxels: int) -> int:
        free = free_memory(self.device)
        if not free:
            return 1
        # beside the maps: the image, probabilities and their sums in float32
        each = (MARGIN * self._bytes_per_voxel + 4 * (self.plan.inputs + 3 * self.plan.labels.outputs)) * voxels
        return int(max(1, min(SHARE * free // each, MOST_VOXELS // voxels)))

    def _eager(self, windows: Tensor) -> Tensor:
        # a graph must not read casts of weights that autocast kept from an earlier call
        with autocast(self.precision, self.device, keep=self.device.type != "cuda"):
            return self.network(windows) if not self.heads else self._with_counts(windows)

    def _with_counts(self, windows: Tensor) -> Tensor:
        """Logits and counts in one row for every window, as a graph gives one tensor."""
        outputs = self.network.outputs(windows)
        labels = self.plan.labels
        each = [count_agreement(outputs.logits, head, labels, logits=True) for head in outputs.heads.values()]
        return torch.cat([outputs.logits.float().flatten(1), torch.stack(each).sum(dim=0).flatten(1)], dim=1)

    @cached_property
    def _bytes_per_voxel(self) -> float:
        return maps_per_voxel(self.network, self.plan, bf16=self.precision == "bf16")


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process can still get, its own that lie idle among them; 0 for other devices.

    What lies idle in the pool of a graph is for that graph alone.
    """
    if device.type != "cuda":
        return 0
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    common = [segment for segment in segments if tuple(segment["segment_pool_id"]) == (0, 0)]
    idle = sum(segment["total_size"] - segment["allocated_size"] for segment in common)
    return int(torch.cuda.mem_get_info(device)[0] + idle)
