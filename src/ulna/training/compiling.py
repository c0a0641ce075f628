"""Whether torch compiles the network of a training, and what is said where it cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ulna.errors import UsageError, printable
from ulna.recipe import Training

LONGEST = 300  # signs of what a compiler says


def compiles(settings: Training, device: torch.device) -> bool:
    """Whether the network is compiled, before its first step.

    "auto" never compiles so far: on a GPU the step is one CUDA graph of the kernels that are there. What compiling adds to
    that is not measured yet; it takes minutes, which a short training has not.

    Args:
        settings: of the recipe.
        device: that trains.

    Raises:
        UsageError: if it is wanted where there is no compiler, or beside activation checkpointing.
    """
    if settings.compile is not True:
        return False
    if settings.activation_checkpointing:
        raise UsageError(
            "training.compile is true beside training.activation_checkpointing, which torch cannot compile with what batch "
            "norm needs; leave one of them out"
        )
    if missing := _missing(device):
        raise UsageError(f"training.compile is true, but {missing}; install it, or leave training.compile to auto")
    return True


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one graph, for tensors of the shapes that it gets; compiled when it is first called."""
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return made


@contextmanager
def explained(compiling: bool) -> Iterator[None]:
    """What torch's compiler says within as a fault that a person can act on.

    Raises:
        UsageError: for an error of the compiler.
    """
    if not compiling:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError

    try:
        yield
    except (TorchDynamoException, InductorError, CppCompileError) as error:
        said = printable(" ".join(str(error).splitlines()[:2]))[:LONGEST]  # where it failed, and what was wrong there
        raise UsageError(
            f"training.compile is true, but torch cannot compile this network here ({said}); "
            "leave training.compile to auto"
        ) from error


def _missing(device: torch.device) -> str:
    """The compiler that torch would need for a device and does not find, in words; nothing where it is there."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "Triton, which compiles for GPUs, is not installed"
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # of several kinds, by version
        return "there is no C++ compiler"
    return ""
