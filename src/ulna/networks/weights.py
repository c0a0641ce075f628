"""Weights from a file into a network: compared by their shapes before anything large is made, and finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ulna.errors import UsageError, printable
from ulna.networks.network import Network
from ulna.system.files import read_header, read_tensors

_SHOWN = 3  # names in a message


def load_network(make: Callable[[], Network], path: Path) -> Network:
    """The network that `make` builds, with the weights of a file.

    A recipe of a few lines can describe a network of hundreds of GB: it is built without memory first, and in earnest only
    where the file holds exactly its weights.

    Raises:
        UsageError: naming the file, if it is missing or damaged, holds other weights, or values that are not finite.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    weights = _read(path, expected)
    return _filled(make(), weights, path)


def load_weights(network: Network, path: Path) -> Network:
    """The same network with the weights of a file in place of its own.

    Raises:
        UsageError: as in `load_network`.
    """
    return _filled(network, _read(path, network.state_dict()), path)


def _read(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    check_shapes(path, expected, read_header(path))
    weights = read_tensors(path).tensors
    for name, tensor in weights.items():
        if tensor.is_floating_point() != expected[name].is_floating_point() or tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(f"{printable(path)}: {printable(name)} holds {kind} numbers; restore it or train again")
    return weights


def _filled(network: Network, weights: Mapping[str, Tensor], path: Path) -> Network:
    network.load_state_dict(weights)
    check_finite(path, network.state_dict())  # as the network has them: float64 from elsewhere may be too large for it
    network.origin = printable(path.parent)
    return network


def check_shapes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a UsageError where a file holds other weights than a network has: too few, too many, of other shapes."""
    faults = [f"{printable(name)} is missing" for name in expected if name not in found]
    faults += [f"{printable(name)} belongs to no part of the network" for name in found if name not in expected]
    faults += [
        f"{printable(name)} has the shape {found[name]}, the network {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name] != tuple(tensor.shape)
    ]
    if faults:
        more = f"; {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UsageError(
            f"{printable(path)}: does not fit the recipe.yaml beside it ({'; '.join(faults[:_SHOWN])}{more}); "
            "restore both from one training, or train again"
        )


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a UsageError where weights or statistics are NaN or infinite, or a variance is negative.

    A network with such weights answers all the same, most often with background everywhere.
    """
    faults = not_finite(tensors)
    if faults:
        more = f", and {len(faults) - _SHOWN} more tensors" if len(faults) > _SHOWN else ""
        raise UsageError(
            f"{printable(path)}: {'; '.join(faults[:_SHOWN])}{more}: no answer of this network means anything; restore the "
            "file or train again"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the values of named tensors, a line for each of those that are not sane."""
    faults: list[str] = []
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            faults.append(f"{bad:,} of {math.prod(tensor.shape):,} values of {printable(name)} are NaN or infinite")
        elif name.endswith("running_var") and bool((tensor < 0).any()):
            faults.append(f"{printable(name)} holds a negative variance")
    return faults
