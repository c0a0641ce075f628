"""Which device, what a plan has to know of it, and which precision is fast on it."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# Values of ONEDNN_MAX_CPU_ISA that take the bf16 instructions from the library that torch calls: it would emulate them
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class Device:
    """What a training is planned for: the sizes of a plan depend on this alone, so that equal machines plan alike.

    Args:
        kind: of the device.
        memory_bytes: of a GPU. Plans for a CPU do not depend on it, and what the machine holds is asked where that counts.
        bf16: it has instructions for products of bf16 numbers.

    Example:
        >>> Device("cuda", 80e9).precision("auto")
        'bf16'
    """

    kind: Literal["cpu", "cuda"]
    memory_bytes: float = 0.0
    bf16: bool = True

    @property
    def gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.kind == "cuda"

    def precision(self, wanted: str) -> str:
        """ "bf16" or "fp32"; "auto" takes bf16 where the hardware multiplies it."""
        return wanted if wanted != "auto" else "bf16" if self.bf16 else "fp32"


def find_device() -> Device:
    """That of `default_device`."""
    device = default_device()
    memory = torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else 0
    return Device("cuda" if device.type == "cuda" else "cpu", float(memory), multiplies_bf16(device))


def gpus_here() -> int:
    """How many GPUs this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process sees, so that another process can be given one of them."""
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return listed[: gpus_here()] if listed else [str(number) for number in range(gpus_here())]


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """What a reader calls the device of `default_device`: the model of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer versions of torch
    return f"CPU {known.get('cpu_name') or platform.processor() or platform.machine()}"


def choose_precision(wanted: str, device: torch.device) -> str:
    """ "bf16" or "fp32"; "auto" takes bf16 where the hardware multiplies it.

    A CPU without bf16 instructions emulates them: a training step of U-Net then took 12 times as long as in fp32.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16(device) else "fp32"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or _allowed_instructions() in WITHOUT_BF16:
        return False
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _allowed_instructions() -> str:
    """The instructions that a person leaves to oneDNN; it reads the older name where the newer one says nothing."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


def autocast(precision: str, device: torch.device, *, keep: bool = True) -> AbstractContextManager[object]:
    """Products in bf16 and the rest in fp32, or nothing; `keep`: weights that were cast are kept until it ends."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=keep) if precision == "bf16" else nullcontext()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; to a GPU from pinned memory, without waiting for it."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # a view would pin all that it spans, and be copied by way of memory that is not pinned
    return torch.empty_like(tensor, pin_memory=True).copy_(tensor).to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, itself where it lies there; from a GPU by pinned memory."""
    if not tensor.is_cuda:
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
