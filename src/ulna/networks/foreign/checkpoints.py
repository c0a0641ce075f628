"""Weights out of files that others wrote with torch: tensors by name, read without running code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ulna.errors import UsageError, listed, printable

# what checkpoints call their weights, the likeliest first
INSIDE = ("state_dict", "model_state_dict", "model", "network_weights", "network", "weights")
WRAPPED = ("module.", "_orig_mod.")  # what training in parallel, and torch.compile, put before every name
SHOWN = 4  # names in a message
DEEPEST = 4  # mappings in mappings
_CODE = re.compile(r"GLOBAL (\S+)")  # what a pickle wanted to import


class Checkpoint(NamedTuple):
    """What a file holds.

    Args:
        weights: by name.
        inside: the keys under which they lay, from the outermost.
        wrapped: what was taken from the beginning of every name.
        beside: what else the file holds: it is left out.
    """

    weights: dict[str, Tensor]
    inside: tuple[str, ...]
    wrapped: tuple[str, ...]
    beside: tuple[str, ...]


def read_checkpoint(path: Path, prefix: str = "") -> Checkpoint:
    """Tensors by name, of a safetensors file or of one that torch saved; no code in it is run.

    Args:
        path: the file.
        prefix: take only names that begin so, and take it away.

    Raises:
        UsageError: if it is neither, or holds more than tensors by name where the weights are.
    """
    found, inside, beside = _loaded(path), [], []
    for _ in range(DEEPEST):
        key = next((one for one in INSIDE if isinstance(found, Mapping) and _holds_weights(found.get(one))), None)
        if key is None:
            break
        inside.append(key)
        beside += [str(one) for one in found if one != key]
        found = found[key]
    if not isinstance(found, Mapping) or not found:
        what = "nothing" if isinstance(found, Mapping) else f"{type(found).__name__} and no tensors by name"
        raise UsageError(f"{printable(path)}: holds {what}; save the state_dict of the network")
    named = {str(name): one for name, one in found.items()}
    wrapped: list[str] = []
    while start := next((one for one in WRAPPED if all(name.startswith(one) for name in named)), None):
        wrapped.append(start)
        named = {name.removeprefix(start): one for name, one in named.items()}
    if prefix:
        whole = prefix if prefix.endswith(".") else f"{prefix}."
        beside += [name for name in named if not name.startswith(whole)]
        named = {name.removeprefix(whole): one for name, one in named.items() if name.startswith(whole)}
        if not named:
            starts = sorted({f"{name.partition('.')[0]}." for name in beside if "." in name})
            has = f"; there are {listed(list(map(printable, starts)), SHOWN)}" if starts else ""
            raise UsageError(f"{printable(path)}: no name begins with {printable(whole)}{has}")
    for name, one in named.items():
        if fault := _fault(one):
            raise UsageError(
                f"{printable(path)}: {printable(name)} {fault}; take what is wanted with a prefix, or save the state_dict of "
                "the network alone"
            )
    return Checkpoint(named, tuple(inside), tuple(wrapped), tuple(beside))


def _loaded(path: Path) -> Any:
    name = printable(path)
    if not path.is_file():
        raise UsageError(f"{name}: {'is a folder' if path.is_dir() else 'no such file'}; name a file with weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, LookupError, TypeError, AttributeError) as error:
        why = _first_line(error)
    except pickle.UnpicklingError as error:
        code = _CODE.search(str(error))
        why = f"it wants {printable(code[1])} to be run" if code else _first_line(error)
    except SafetensorError as error:
        why = _first_line(error)
    raise UsageError(
        f"{name}: holds no weights that can be read without running code ({why}); who trusts it loads it in Python and "
        "saves its weights alone: torch.save(network.state_dict(), FILE)"
    )


def _holds_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(one, Tensor) or (name in INSIDE and isinstance(one, Mapping)) for name, one in value.items()
    )


def _fault(one: Any) -> str:
    """Why something cannot be a weight; nothing where it can."""
    if not isinstance(one, Tensor):
        return f"is {type(one).__name__} and no tensor"
    if one.layout != torch.strided or one.is_quantized or one.is_complex() or one.device.type != "cpu":
        return "is a tensor of another kind than numbers in a grid"
    # a file of a few bytes may say that one number stands for billions
    if one.numel() * one.element_size() > one.untyped_storage().nbytes():
        return "says more numbers than it holds"
    return ""


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return printable(text.splitlines()[0][:200] if text else type(error).__name__)
