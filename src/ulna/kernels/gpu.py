"""Triton on this machine: whether it can be had, and on which devices its kernels run."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from ulna.kernels.native import first_line

log = logging.getLogger(__name__)

SWITCH = "ULNA_TRITON"  # environment variable: 0 switches kernels in Triton off
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported


@cache
def installed() -> bool:
    """Whether Triton can be imported and is not switched off (said once in the log)."""
    if os.environ.get(SWITCH, "1") == "0":
        log.info("Triton kernels are switched off (%s=0)", SWITCH)
        return False
    try:
        import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except Exception as error:  # a broken installation may raise anything
        log.info("no kernels in Triton here (%s)", first_line(error))
        return False
    return True


def runs_on(device: torch.device) -> bool:
    """Whether Triton runs there: on an NVIDIA GPU that multiplies bf16; in its interpreter on a CPU too."""
    if device.type == "cuda":
        return torch.version.cuda is not None and _capability(device) >= (8, 0) and installed()
    return device.type == "cpu" and INTERPRETED and installed()


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
