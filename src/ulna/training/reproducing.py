"""What the bits of a training depend on beside its own state: number of threads, device, arithmetic, versions."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ulna.errors import UsageError, brief, counted, printable
from ulna.kernels import gpu, native
from ulna.system.graphs import graphs_allowed
from ulna.system.threads import MOST_THREADS
from ulna.version import version

log = logging.getLogger(__name__)

KERNEL = "kernel "  # what the names of compiled libraries begin with
# of those that compute; one that was stored is asked for before it is compared
KERNELS = ("convolution", "normalize", "sweep", "sweep_matrices")


def environment(device: torch.device, precision: str, threads: int | None = None, devices: int = 1) -> dict[str, Any]:
    """What is stored with every checkpoint, in plain values.

    Args:
        device: that computes.
        precision: "bf16" or "fp32".
        threads: of all devices together; None: those of this process.
        devices: that compute together.
    """
    kernels = "native" if native.available() else "torch's own"
    compiled = native.versions() if device.type == "cpu" else {}
    return {
        "threads": torch.get_num_threads() if threads is None else threads,
        "devices": devices,
        "device": device.type,
        "precision": precision,
        "ulna": version("ulna"),
        "torch": torch.__version__,
        "kernels": kernels,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{f"{KERNEL}{name}": built for name, built in compiled.items() if name in KERNELS},
        **(_gpu(device) if device.type == "cuda" else {}),
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    """What sums on a GPU depend on. Even where all of it is the same they are so within rounding alone: the fastest form of a
    convolution is found by timing, and some kernels add in no fixed order."""
    return {
        "GPU": torch.cuda.get_device_name(device),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "graphs": graphs_allowed(),
        "Triton kernels": gpu.runs_on(device),
    }


def restore_environment(stored: dict[str, Any], device: torch.device, precision: str, devices: int = 1) -> None:
    """Compute as the run began: takes its number of threads, and says what else is different now.

    Several devices have a share of the threads each, which whoever began them has seen to.

    Sums over pixels are split among threads, so another number of threads gives other last bits.

    Raises:
        UsageError: if this process cannot take as many threads.
    """
    here = torch.get_num_threads()
    wanted = stored.get("threads", here)
    if not isinstance(wanted, int) or not 1 <= wanted <= MOST_THREADS:
        raise UsageError(f"the checkpoint names {brief(wanted)} threads; restore it, or train again")
    if wanted != here and devices == 1:
        torch.set_num_threads(wanted)
        if torch.get_num_threads() != wanted:
            raise UsageError(
                f"this run computes with {counted(wanted, 'thread')}, and goes on exactly only with as many; "
                "this process keeps to "
                f"{torch.get_num_threads()}: start it with OMP_NUM_THREADS={wanted}"
            )
        log.info(
            "note: computing with %d threads, as this run began, and not with %d: else it would not go on exactly",
            wanted, here,
        )  # fmt: skip
    for name in KERNELS:
        if f"{KERNEL}{name}" in stored:
            native.library(name)
    now = environment(device, precision, None if devices == 1 else wanted, devices)
    other = [
        f"{name} {printable(stored[name])} before, {now[name]} now"
        for name in now
        if name in stored and stored[name] != now[name]  # a checkpoint of an earlier version names fewer
    ]
    if other:
        log.warning("going on, but not to the last bit as without the stop: %s", "; ".join(other))
