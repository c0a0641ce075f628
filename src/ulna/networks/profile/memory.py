"""How much memory a pass through a network takes at its peak, counted without memory (meta device)."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ulna.blocks.spatial_dependency import SpatialDependency
from ulna.networks.foreign import ForeignNetwork
from ulna.networks.heads import Outputs
from ulna.networks.network import Network


class _Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operations make, as long as they live; `most` is the largest sum so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._held and id(storage) not in known:  # views share one
                    self._take(storage)
        return made

    def _take(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()

        def free(_: Any) -> None:
            self.now -= size
            self._held.pop(key, None)

        self._held[key] = weakref.ref(storage, free)
        self.now += size
        self.most = max(self.most, self.now)


def peak_bytes(
    network: Network,
    size: Sequence[int],
    *,
    batch: int = 1,
    training: bool,
    bf16: bool = False,
    points: int | None = None,
    loss: Callable[[Outputs], Tensor] | None = None,
) -> int:
    """Bytes of maps, logits and their gradients at the peak of a pass; weights and their gradients are left out.

    What a library takes for itself within an operation is not seen. Sweeps keep their state in float32, so networks
    that have them are counted in it, as are networks of others, which choose the precision of some layers themselves.

    Args:
        network: on any device.
        size: S, of an image.
        batch: images together.
        training: with the backward pass, else without gradients.
        bf16: maps are kept in bfloat16, as under autocast.
        points: read at so many points alone.
        loss: of a training, on the meta device; None: one that keeps a map for every map of logits.
    """
    wide = isinstance(network, ForeignNetwork) or any(isinstance(m, SpatialDependency) for m in network.modules())
    dtype = torch.bfloat16 if bf16 and not wide else torch.float32
    network = copy.deepcopy(network).to(device="meta", dtype=dtype).train(training)
    image = torch.zeros(batch, network.in_channels, *size, device="meta", dtype=dtype)
    at = None if points is None else torch.zeros(batch, points, len(size), dtype=torch.long, device="meta")
    if not training:
        with torch.no_grad(), _Peak() as peak:
            logits = network.outputs(image, at).logits
            logits.float().sigmoid()
        return peak.most
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that gradients are added to what is there, and not counted
    with _Peak() as peak:
        outputs = network.outputs(image, at)
        (loss or _plain_loss)(outputs).backward()  # type: ignore[no-untyped-call]
    return peak.most


def _plain_loss(outputs: Outputs) -> Tensor:
    return torch.stack([logits.float().sigmoid().mean() for logits in outputs.heads.values()]).sum()
