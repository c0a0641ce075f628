"""Optimisers by name, and a learning rate that a recorded step sees change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ulna.recipe import Optimizer

FACTOR = "lr_factor"  # of a group of parameters: its rate is this share of the rate of all


def make_optimizer(
    settings: Optimizer, parameters: Iterable[nn.Parameter] | Sequence[dict[str, Any]], *, recorded: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a recipe.

    Args:
        settings: of the recipe.
        parameters: on their device; or groups of them, none of them empty, with `FACTOR` where their rate is lower.
        recorded: whether a graph will repeat its steps: numbers of Python would stay as they were when it was recorded, so
            the learning rate is a tensor beside the parameters, and all is done by kernels that read it there.
    """
    given = list(parameters)
    groups: list[dict[str, Any]] = [one for one in given if isinstance(one, dict)] or [{"params": given}]
    device = groups[0]["params"][0].device
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if recorded:  # a tensor of its own for every group
        groups = [{**one, "lr": torch.tensor(settings.lr, dtype=torch.float32, device=device)} for one in groups]
        common["lr"] = groups[0]["lr"]
    if settings.kind == "sgd":
        # torch's other ways of SGD read the tensor of a rate on the host
        fused = {"fused": True} if recorded else {}
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.momentum > 0, **fused, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.kind]
    made = kind(groups, fused=True, capturable=recorded and device.type == "cuda", **common)
    made._warned_capturable_if_run_uncaptured = True  # type: ignore[union-attr]  # the first steps are not recorded
    return made


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of the steps to come; a device is told without being waited for."""
    for group in optimizer.param_groups:
        rate = lr * group.get(FACTOR, 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def lr_of(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate as it stands: the highest, where groups have several."""
    return max(float(group["lr"]) for group in optimizer.param_groups)
