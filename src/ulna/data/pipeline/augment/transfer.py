"""From the memory of the machine to that of a device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. To a GPU through pinned memory: this process goes on, and does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # a view would pin all that it spans, and be copied by way of memory that is not pinned
        return torch.empty_like(tensor, pin_memory=True).copy_(tensor).to(device, non_blocking=True)
    return tensor.to(device)
