"""Packages that extras bring, imported only where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ulna.errors import UsageError

EXTRA = ("onnx", "onnxscript", "onnxruntime")


def need(module: str, what: str = "exported files need", extra: str = "export") -> Any:
    """A module of a package that an extra brings.

    Args:
        module: its name.
        what: needs it, as a message begins.
        extra: brings it.

    Raises:
        UsageError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            package = error.name.partition(".")[0]
        command = "pip install ./packages/runtime" if package == "ulna_runtime" else f"pip install 'ulna[{extra}]'"
        raise UsageError(f"{what} {package}, which is not installed; {command}") from None
