"""Weights of an encoder from a local file, into a network of segmentation_models.pytorch where a training begins."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ulna.errors import UsageError, counted, listed, printable
from ulna.networks.foreign.network import ForeignNetwork
from ulna.recipe import Foreign

log = logging.getLogger(__name__)

_INSIDE = ("state_dict", "model", "model_state_dict")  # what checkpoints call their weights


def check_file(foreign: Foreign) -> Path:
    """The file with the weights.

    Raises:
        UsageError: if the network has no encoder to fill, or there is no such file.
    """
    path = Path(str(foreign.encoder_weights))
    if foreign.named.kind != "smp":
        raise UsageError(
            f"architecture.foreign.encoder_weights: {printable(foreign.source)} has no encoder to fill; smp has"
        )
    if not path.is_file():
        raise UsageError(f"architecture.foreign.encoder_weights: {printable(path)} is no file; ulna downloads nothing")
    return path


def load_encoder(network: nn.Module, foreign: Foreign | None) -> None:
    """Fill the encoder of a network with what fits of the file that its recipe names; what does not is told.

    Raises:
        UsageError: if nothing fits, or the file cannot be read.
    """
    if foreign is None or foreign.encoder_weights is None:
        return
    path = check_file(foreign)
    encoder: Any = getattr(network.module, "encoder", None) if isinstance(network, ForeignNetwork) else None
    if not isinstance(encoder, nn.Module):
        raise UsageError(f"{printable(foreign.source)}: has no part that is called encoder")
    own, given = encoder.state_dict(), {name.removeprefix("encoder."): one for name, one in read_weights(path).items()}
    fitting = {name: given[name] for name in own if name in given and given[name].shape == own[name].shape}
    if not fitting:
        raise UsageError(f"{printable(path)}: none of its weights fits the encoder of {printable(foreign.source)}")
    bad = [name for name, one in fitting.items() if one.is_floating_point() and not bool(torch.isfinite(one).all())]
    if bad:
        raise UsageError(f"{printable(path)}: {listed(bad, 3)} holds values that are NaN or infinite")
    encoder.load_state_dict({**own, **fitting})
    left = [name for name in own if name not in fitting]
    spare = len(given.keys() - own.keys())
    log.info(
        "encoder: %s of %s from %s%s%s", f"{len(fitting):,}", counted(len(own), "tensor"), path,
        f"; as drawn: {listed(left, 4)}" if left else "",
        f"; {counted(spare, 'tensor')} of the file not used" if spare else "",
    )  # fmt: skip


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors file or of one that torch saved; no code in it is run.

    Raises:
        UsageError: if it is neither, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UsageError(f"{printable(path)}: holds no weights that can be read without running code ({why})") from None
    except Exception as error:  # of safetensors, whose error is of a type of its own
        raise UsageError(f"{printable(path)}: cannot be read ({str(error)[:200]})") from None
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(one, Tensor) for one in found.values()):
        raise UsageError(
            f"{printable(path)}: holds more than tensors by name; save the state_dict of the encoder alone"
        )
    return {str(name): one for name, one in found.items()}
