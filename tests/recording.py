"""What a CPU can show of a recorded step: torch operations, noted once and repeated with what then lies where they read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "unique",
)  # for a number on the host: no graph has them


class Watched(TorchDispatchMode):
    """Kernels in C++ make way for torch's operations within, as they do where these are noted."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Noted(TorchDispatchMode):
    """All operations within; `replay` repeats them, and leaves what they make where it lay before."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class Notes:
    """As `CudaGraphs` on a GPU: recording does nothing, a recording has the numbers and addresses that it had.

    Args:
        tensors: gives all that work may change.
    """

    def __init__(self, tensors):
        self.tensors, self.ran, self.recorded, self.replayed = tensors, 0, 0, 0

    def run(self, work):
        self.ran += 1
        with Watched():
            work()

    def record(self, work):
        kept, random = [(t, t.detach().clone()) for t in self.tensors()], torch.get_rng_state()
        with Noted() as noted:
            work()
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        torch.set_rng_state(random)
        self.recorded += 1

        def replay():
            self.replayed += 1
            noted.replay()

        return replay
