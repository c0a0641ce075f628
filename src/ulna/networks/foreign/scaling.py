"""`--match` for a network of others: its width options, scaled by one factor; what has none is refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from ulna.errors import UsageError, printable
from ulna.networks.foreign.making import maker_for
from ulna.recipe import Foreign

# what constructors call their widths; of an encoder that is chosen by name, only the decoder has some
WIDTHS = (
    "channels", "features", "filters", "init_filters", "feature_size", "base_channels", "init_features", "n_filters",
    "num_filters", "width", "decoder_channels", "decoder_pyramid_channels", "decoder_segmentation_channels",
)  # fmt: skip
STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48)  # of which widths must be multiples, for groups or attention heads


def match_foreign(
    foreign: Foreign, target: float, size: Callable[[Foreign], float], words: str, *, nearest: bool = False
) -> Foreign:
    """The network with its widths scaled by one factor, as close to a size as its constructor takes.

    Args:
        foreign: with its sizes.
        target: the size to come close to.
        size: of a network.
        words: how a size is written in messages.
        nearest: take what cannot be scaled as it is, and the narrowest where even that is larger.

    Raises:
        UsageError: if it has no widths that can be scaled, or even the narrowest is larger.
    """
    who = printable(foreign.source)
    base = widths_of(foreign)
    if not base and nearest:
        return foreign
    if not base:
        raise UsageError(
            f"{who}: cannot be scaled to {words.format(target)}: its constructor has none of {', '.join(WIDTHS[:6])} ...; "
            "leave --match out, or state options of your own that have about this size"
        )
    step = _step(foreign, base, size)
    counted: dict[str, float] = {}

    def scaled(factor: float) -> Foreign:
        return foreign.replaced(options={**foreign.options, **{n: _times(v, factor, step) for n, v in base.items()}})

    def count(factor: float) -> float:
        made = scaled(factor)
        key = repr(made.options)
        if key not in counted:
            counted[key] = size(made)
        return counted[key]

    low = high = 1.0
    while count(low) > target:
        if all(width <= step for value in base.values() for width in _flat(_times(value, low, step))):
            if nearest:
                return scaled(low)
            raise UsageError(
                f"cannot be scaled to {words.format(target)}: the narrowest such network has {words.format(count(low))}"
                + ("; its encoder keeps its width" if foreign.named.kind == "smp" else "")
            )
        low /= 2
    while count(high) < target:
        high *= 2
        if high > 1 << 12:
            raise UsageError(
                f"{who}: cannot be scaled to {words.format(target)}: its widths change its size too little"
            )
    while scaled(low) != scaled(high) and high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return scaled(min(low, high, key=lambda factor: abs(count(factor) - target)))


def widths_of(foreign: Foreign) -> dict[str, Any]:
    """The options that are widths, as stated, else by default."""
    parameters = inspect.signature(maker_for(foreign)).parameters
    found = {}
    for name in WIDTHS:
        value = foreign.options.get(name, parameters[name].default if name in parameters else None)
        numbers = _flat(value)
        if numbers and all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in numbers):
            found[name] = value
    return found


def origin_words(foreign: Foreign) -> str:
    """Where a network of others comes from, for a footnote."""
    of = foreign.version or f"code of its own, sha256 {str(foreign.digest)[:12]}"
    options = ", ".join(f"{name}={value}" for name, value in foreign.options.items())
    return f"a network of others ({of}{', ' + options if options else ''}), with the plan and the training of all"


def scaled_words(before: Foreign | None, after: Foreign | None) -> str:
    """What was scaled and what was not, for a footnote; nothing of a network of ulna."""
    if before is None or after is None:
        return ""
    base = widths_of(before)
    if not base:
        return "not scaled: its constructor has no widths"
    changed = ", ".join(f"{n} {base[n]} to {after.options[n]}" for n in base if after.options.get(n) != base[n])
    rest = "; its encoder keeps its width" if before.named.kind == "smp" else ""
    return f"scaled by its own options ({changed or 'nothing to change'}){rest}"


def _step(foreign: Foreign, base: dict[str, Any], size: Callable[[Foreign], float]) -> int:
    """The smallest number of which all widths may be multiples."""
    numbers = [one for value in base.values() for one in _flat(value)]
    for step in STEPS:
        if any(one % step for one in numbers):
            continue
        wider = {name: _added(value, step) for name, value in base.items()}
        try:
            size(foreign.replaced(options={**foreign.options, **wider}))
        except UsageError:
            continue
        return step
    return math.gcd(*numbers)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None or value is inspect.Parameter.empty else [value]


def _times(value: Any, factor: float, step: int) -> Any:
    if isinstance(value, list | tuple):
        return [_times(one, factor, step) for one in value]
    return max(step, round(value * factor / step) * step)


def _added(value: Any, step: int) -> Any:
    return [one + step for one in value] if isinstance(value, list | tuple) else value + step
