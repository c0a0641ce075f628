"""The door to our own kernels: what may enter is decided here, for all of them; the rest goes to torch's operations.

A kernel in C++ is given the address of a tensor's values, so every doubt about what lies there is a wrong answer or a read
out of bounds. And a gradient written by hand knows one use: the first derivative, in reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
KINDS = (Tensor, nn.Parameter)  # what else is called a tensor may mean anything


def ordinary() -> bool:
    """Whether operations do what they say and no more: nobody compiles, traces or transforms them."""
    return not (_recorded() or transformed())


def transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp, ...) or a level of forward-mode derivatives is at work, outside a compiler."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def watched() -> bool:
    """Whether a dispatch mode, as one that counts operations, looks on: it sees nothing of what is done in C++."""
    return bool(torch._C._len_torch_dispatch_stack())


def computed(x: object) -> bool:
    """Whether a tensor is one of torch's own that is computed now: no subclass or fake one, and nobody compiles or traces."""
    return type(x) in KINDS and not _recorded()


def plain(x: object) -> bool:
    """Whether a tensor is one of torch's own whose values all lie in memory, on any device, as its strides have it.

    Not: fake tensors, subclasses, sparse and quantised ones, lazy minus and conjugate, zeros without memory, freed memory,
    values between the addresses of their type, and none at all.
    """
    if type(x) not in KINDS or not isinstance(x, Tensor):
        return False
    if not torch._C._has_storage(x):  # as in a batched one
        return False
    if x.layout != torch.strided or x.is_quantized or x.is_neg() or x.is_conj() or x._is_zerotensor() or not x.numel():
        return False
    reach = 1 + x.storage_offset() + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return reach * x.element_size() <= x.untyped_storage().nbytes() and x.data_ptr() % x.element_size() == 0


def admits(*tensors: Tensor | None, dtypes: Collection[torch.dtype], device: str | None = "cpu") -> bool:
    """Whether all tensors (None: left out) are plain, on the device and of a type that a kernel knows, and nobody looks on.

    `device` None: any, the same for all.
    """
    given = [t for t in tensors if t is not None]
    return (
        ordinary()
        and all(plain(t) and t.dtype in dtypes for t in given)
        and all(t.device == given[0].device for t in given)
        and (device is None or all(t.device.type == device for t in given))
    )


def row(x: Tensor | None, length: int) -> bool:
    """Whether something is one value for every channel: (length,), or left out."""
    return x is None or x.shape == (length,)


def _recorded() -> bool:
    """Whether operations are written down rather than done."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def gradient_by_torch(*grads: Tensor) -> bool:
    """Whether a backward pass is to be taken by torch's operations: it will be derived again, or its gradients are odd."""
    return torch.is_grad_enabled() or not ordinary() or not all(plain(g) for g in grads)


def gradients(
    definition: Callable[..., Tensor], inputs: Sequence[Tensor | None], asked: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of `definition` at `inputs`, by torch's own derivatives: they can be derived again, mapped and traced.

    Args:
        definition: what a kernel computes, in torch's operations.
        inputs: its arguments.
        asked: of which inputs the gradient is wanted.
        grad: of its output.

    Returns:
        One for every input; None where none is asked for.
    """
    again, kind = torch.is_grad_enabled(), grad.device.type
    # in the precision of the forward pass, whatever surrounds this one; meta tensors know no autocast
    with torch.enable_grad(), nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        # views, so that the way from one input to another, as of a map to the weights that made it, is not gone twice
        own = [
            None if t is None else t.view_as(t) if again else t.detach().requires_grad_(wanted)
            for t, wanted in zip(inputs, asked, strict=True)
        ]
        made = definition(*own)
        wanted = [t for t, w in zip(own, asked, strict=True) if w and t is not None]
        found = iter(torch.autograd.grad(made, wanted, grad.to(made.dtype), create_graph=again, allow_unused=True))
    return [next(found) if w and t is not None else None for t, w in zip(own, asked, strict=True)]
