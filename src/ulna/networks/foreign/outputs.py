"""What networks of others give, read as maps of logits by name; what cannot be understood is refused with one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ulna.errors import UsageError

ANSWER = "logits"  # the name of the answer among the heads
KEYS = ("out", "logits")  # of the answer in a dict, as torchvision and Hugging Face have it
BESIDE = "aux"  # of a further supervised map there


class WrongSizeError(UsageError):
    """The answer has another size than the image: another size of image may do."""


def read_maps(
    given: Any, size: Sequence[int], classes: int, *, answer: str | None = None, who: str = "the network"
) -> dict[str, Tensor]:
    """Maps of logits by name, the answer first: a tensor, a list, a dict, or maps in a stack (N, maps, K, *S).

    Of several maps, that of the size of the image is the answer, and the others are supervised beside it.

    Args:
        given: what the network gave for images of `size`.
        size: S.
        classes: K.
        answer: "first" or "last", of several maps of that size.
        who: in messages.

    Raises:
        UsageError: if it is something else, or which map is the answer is not clear.
    """
    maps = _listed(given, len(size), who)
    for one in maps.values():
        if one.ndim != len(size) + 2 or one.shape[1] != classes:
            raise UsageError(
                f"{who} gives a map of shape {tuple(one.shape)}, where (N, {classes}, {', '.join('S' * len(size))}) is "
                f"wanted: one map of logits for each of {classes} classes, background included (for one structure alone, one "
                "map)"
            )
    whole = [name for name, one in maps.items() if tuple(one.shape[2:]) == tuple(size)]
    if not whole:
        sizes = ", ".join("x".join(map(str, one.shape[2:])) for one in maps.values())
        raise WrongSizeError(
            f"{who} gives a map of {sizes} for an image of {'x'.join(map(str, size))}; the answer must have the image's size"
        )
    if len(whole) > 1 and answer is None and ANSWER not in maps:
        raise UsageError(
            f"{who} gives {len(whole)} maps of the size of the image, and which is the answer is not clear; say it: "
            "architecture.foreign.answer=first, or last"
        )
    chosen = ANSWER if ANSWER in whole else whole[-1 if answer == "last" else 0]
    others = [one for name, one in maps.items() if name != chosen]
    return {ANSWER: maps[chosen], **{f"deep{number}": one for number, one in enumerate(others, start=1)}}


def _listed(given: Any, dims: int, who: str) -> dict[str, Tensor]:
    if isinstance(given, Tensor):
        return dict(enumerated(given.unbind(1))) if given.ndim == dims + 3 else {ANSWER: given}
    if isinstance(given, Mapping):
        keys = [key for key in KEYS if key in given]
        if not keys:
            shown = ", ".join(str(key)[:30] for key in list(given)[:6]) or "no keys"
            raise UsageError(f"{who} gives a dict of {shown}; its answer must be called {' or '.join(KEYS)}")
        parts = {ANSWER: given[keys[0]], **({BESIDE: given[BESIDE]} if given.get(BESIDE) is not None else {})}
    elif isinstance(given, Sequence) and not isinstance(given, str) and given:
        parts = dict(enumerated(given)) if len(given) > 1 else {ANSWER: given[0]}
    else:
        raise UsageError(
            f"{who} gives {type(given).__name__}; a tensor of logits, or a list or dict of them, is wanted"
        )
    for name, one in parts.items():
        if not isinstance(one, Tensor):
            raise UsageError(
                f"{who} gives a {type(given).__name__} with {type(one).__name__} as {name}; tensors of logits are wanted"
            )
    return parts


def enumerated(values: Sequence[Any]) -> list[tuple[str, Any]]:
    """Values with names by their order."""
    return [(f"map {number}", value) for number, value in enumerate(values, start=1)]
