"""What is done to the values of images before a network sees them, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from ulna.data.formats.limits import within_memory
from ulna.data.layout.case import Case
from ulna.data.pipeline.percentile import percentiles
from ulna.errors import UsageError, counted
from ulna.recipe import Fingerprint, Normalization, Plan
from ulna.recipe.choices import Planning
from ulna.system.progress import track

CT = ("ct", "cta", "ct scan")  # names of channels that hold CT numbers


def check_normalization(planning: Planning) -> None:
    """Refuse choices that contradict each other; nothing of the data is known yet.

    Raises:
        UsageError: with the first.
    """
    window, cap = planning.window, planning.cap
    if window is not None and cap is not None:
        raise UsageError(
            f"planning.window={list(window)} and planning.cap={cap:g} both bound the values; leave out one of them"
        )
    if planning.normalization == "ct" and (window is not None or cap is not None):
        name = "cap" if window is None else "window"
        raise UsageError(
            f"planning.normalization=ct clips to the range of the foreground, and planning.{name} bounds the values "
            "otherwise; leave out one of them"
        )


def choose_normalization(data: Fingerprint, planning: Planning, reasons: dict[str, str]) -> tuple[Normalization, ...]:
    """One a channel; adds the reason. What a percentile bounds is fitted later, see `capped`.

    Raises:
        UsageError: if what the recipe fixes does not fit the data.
    """
    check_normalization(planning)
    chosen = tuple(_of_channel(data, channel, planning) for channel in range(data.channels))
    kinds = sorted({one.kind for one in chosen})
    if planning.normalization is not None:
        why = "fixed by the recipe"
    elif planning.window is not None or planning.cap is not None:
        why = "what planning.window is followed by" if planning.cap is None else "what planning.cap is followed by"
        why += " where planning.normalization is left out"
    elif kinds == ["ct"]:
        why = "CT numbers mean the same in every scan: clipped to the foreground's 0.5 to 99.5 %, then its mean and deviation"
    else:
        why = "brightness and contrast differ from image to image, so each channel of each image gets mean 0 and deviation 1"
    reasons["normalization"] = f"{', '.join(kinds)}: {why}"
    if planning.window is not None:
        low, high = planning.window
        reasons["window"] = f"{low:g} to {high:g}: values are clipped to it first, as the recipe asks"
    return chosen


def _of_channel(data: Fingerprint, channel: int, planning: Planning) -> Normalization:
    kind: Any = planning.normalization
    bounds: dict[str, Any] = {"clip": planning.window, "cap": planning.cap}
    if kind is None and planning.window is not None:
        kind = "rescale"
    if kind is None and planning.cap is None and data.channel_names[channel].strip().lower() in CT and data.foreground:
        kind = "ct"
    if kind == "ct":
        if not data.foreground:
            raise UsageError("planning.normalization=ct: no training case has any foreground to take its range from")
        return Normalization(kind="ct", **data.foreground[channel].model_dump())
    if kind == "rescale":
        eight_bit = data.dtypes == ("uint8",)
        low, high = (0, 255) if eight_bit else (data.intensity[channel].min, data.intensity[channel].max)
        low, high = planning.window or (low, high)
        return Normalization(kind="rescale", low=low, high=high, **bounds)
    return Normalization(kind=kind or "zscore", **bounds)


def capped(plan: Plan, cap: float, cases: Sequence[Case]) -> Plan:
    """The plan with the percentile of all values of these cases, which are the training cases, as the upper bound."""

    def images() -> Iterator[NDArray[Any]]:
        for case in track(cases, "percentile"):
            with within_memory(case.images[0]):
                array = case.read_image().array
            yield array

    bounds = percentiles(images, cap)
    normalization = tuple(
        one.replaced(clip=(None, bound), **({"high": max(bound, one.low)} if one.kind == "rescale" else {}))
        for one, bound in zip(plan.normalization, bounds, strict=True)
    )
    each = ", ".join(f"{bound:g}" for bound in bounds)
    what = f"percentile {cap:g} of all values of the {counted(len(cases), 'training case')}, as the recipe asks"
    reasons = {**plan.reasons, "cap": f"{each}: {what}; larger values count as it"}
    return plan.replaced(normalization=normalization, reasons=reasons)
