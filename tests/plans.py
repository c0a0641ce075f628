"""A small plan to test with."""

from pathlib import Path
from typing import Any

from ulna.data.layout.dataset import Dataset
from ulna.planning.plan import TrainingData
from ulna.recipe import PLAN_FORMAT, Fingerprint, Labels, Normalization, Plan, Split


def fingerprint(steps: tuple[float, ...], unit: str = "px", **changes: Any) -> dict[str, Any]:
    """Of grey images with spacings near `steps` that differ a little, with some fields changed."""
    fields: dict[str, Any] = {
        "cases": 5,
        "spatial_dims": len(steps),
        "channels": 1,
        "channel_names": ("grey",),
        "dtypes": ("uint8",),
        "size": dict.fromkeys(("min", "median", "max"), (16,) * len(steps)),
        "spacing": {"min": [0.99 * s for s in steps], "median": steps, "max": [1.01 * s for s in steps]},
        "unit": unit,
        "classes": ("background", "foreground"),
    }
    return {**fields, **changes}


def training_data(told: Fingerprint, labels: Labels | None = None) -> TrainingData:
    """What is planned for, without files behind it."""
    return TrainingData(Dataset(Path("data"), "pairs", ()), Split(train=("a",), val=("b",)), labels or Labels(), told)


def make(**changes: Any) -> Plan:
    """A 2D plan for one grey channel and one structure, with some fields changed, those of the fingerprint among them."""
    dims = changes.get("spatial_dims", 2)
    fields: dict[str, Any] = {
        "format": PLAN_FORMAT,
        "spatial_dims": dims,
        "in_channels": 1,
        "channel_names": ("grey",),
        "labels": Labels(),
        "spacing": None if changes.get("format") == 1 else (1.0,) * dims,
        "unit": "px",
        "normalization": (Normalization(kind="zscore"),),
        "patch": (16,) * dims,
        "batch": 2,
        "strides": ((2,) * dims,) * 2,
        "whole_image_limit": 10_000,
        "mirror_axes": tuple(range(dims)),
        "turn_axes": (0, 1),
        "reasons": {},
    }
    told = changes.pop("fingerprint", {})
    fields |= changes
    fields["fingerprint"] = fingerprint(fields["spacing"] or (1.0,) * dims, fields["unit"]) | told
    return Plan(**fields)
