"""A small plan to test with."""

from typing import Any

from ulna.recipe import PLAN_FORMAT, Labels, Normalization, Plan


def make(**changes: Any) -> Plan:
    """A 2D plan for one grey channel and one structure, with some fields changed."""
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
        "fingerprint": {},
    }
    return Plan(**{**fields, **changes})
