"""Which sizes a network of others takes, found out by trying, without memory: a divisor of the sides, and the least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ulna.errors import UsageError
from ulna.networks.foreign.code import first_line
from ulna.networks.foreign.outputs import WrongSizeError

DIVISORS = (1, 2, 4, 8, 16, 32, 64, 128)
SIDE = 96  # about which sizes are tried
MANY_LEAST = 5  # doublings of the divisor that are tried as the least side

Try = Callable[[Sequence[int]], None]  # raises where a network does not take images of a size


def find_sizes(attempt: Try, dims: int, who: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest divisor along every axis, and the smallest sides.

    Args:
        attempt: one pass over an image of a size.
        dims: of the image.
        who: in messages.

    Raises:
        UsageError: if no size that was tried is taken, with what the network said last.
    """

    def fault(size: Sequence[int]) -> Exception | None:
        try:
            attempt(size)
        except UsageError as error:
            if not isinstance(error, WrongSizeError):
                raise
            return error
        except Exception as error:  # whatever the code of others raises for a size
            if "Import" in type(error).__name__:  # MONAI raises one of its own where it needs what is not there
                raise UsageError(f"{who}: needs a library that is not installed ({first_line(error)})") from error
            return error
        return None

    why: Exception | None = None
    for common in DIVISORS:
        why = fault([_side(common, axis) for axis in range(dims)])
        if why is None:
            break
    if why is not None:
        tried = "x".join(str(_side(DIVISORS[-1], axis)) for axis in range(dims))
        raise UsageError(
            f"{who}: takes no {dims}D image that was tried, up to {tried} ({type(why).__name__}: {first_line(why)}); it must "
            "compute images of any size that is a multiple of some number, without reading values of tensors, as "
            "tensor.item() does"
        ) from why
    divisor = [common] * dims
    for axis in range(dims):  # across thick slices a network often divides less
        while divisor[axis] > 1:
            smaller = [d // 2 if other == axis else d for other, d in enumerate(divisor)]
            if fault([_side(d, other) for other, d in enumerate(smaller)]) is not None:
                break
            divisor = smaller
    for times in range(MANY_LEAST + 1):
        least = [d * 2**times for d in divisor]
        if fault(least) is None:
            return tuple(divisor), _shortened(least, divisor, lambda size: fault(size) is None)
    return tuple(divisor), tuple(_side(d, axis) for axis, d in enumerate(divisor))


def _shortened(least: Sequence[int], divisor: Sequence[int], taken: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """The least sides with every axis as short as the others allow, the last one first.

    A norm that refuses a map of one value takes one of two, along any axis: twice the work, where a cube has eight times it.
    """
    sides = list(least)
    for axis in reversed(range(len(sides))):
        while sides[axis] > divisor[axis]:
            shorter = [side // 2 if other == axis else side for other, side in enumerate(sides)]
            if not taken(shorter):
                break
            sides = shorter
    return tuple(sides)


def check_sizes(attempt: Try, divisor: Sequence[int], least: Sequence[int], who: str) -> None:
    """Refuse a divisor and least sides that a person stated, where the network does not take them.

    Raises:
        UsageError: with what it said.
    """
    for times in (1, 3):
        size = [-(-times * n // d) * d for n, d in zip(least, divisor, strict=True)]
        try:
            attempt(size)
        except Exception as error:
            if isinstance(error, UsageError) and not isinstance(error, WrongSizeError):
                raise
            sides = "x".join(map(str, size))
            raise UsageError(
                f"{who}: does not take an image of {sides}, which architecture.foreign.divisor={list(divisor)} allows "
                f"({type(error).__name__}: {first_line(error)}); leave the divisor out, and it is found by trying"
            ) from error


def _side(divisor: int, axis: int) -> int:
    """An odd multiple, another one along every axis."""
    return divisor * (max(1, SIDE // divisor) // 2 * 2 + 1 + 2 * (axis % 2))


def passes(module: nn.Module, in_channels: int, read: Callable[[object, Sequence[int]], object]) -> Try:
    """A pass without memory, as in training and as in prediction; what it gives must be understood.

    Args:
        module: on the meta device.
        in_channels: C.
        read: of what it gives and the size.
    """

    def attempt(size: Sequence[int]) -> None:
        image = torch.zeros(1, in_channels, *size, device="meta")
        with torch.enable_grad():  # what made the answer is known by its gradient
            for training in (True, False):
                read(module.train(training)(image), size)

    return attempt
