"""The packages that exporting needs, imported only where a run is exported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ulna.errors import UsageError

EXTRA = ("onnx", "onnxscript", "onnxruntime")


def need(module: str) -> Any:
    """A module of a package that an extra brings.

    Raises:
        UsageError: if it is not installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            package = error.name.partition(".")[0]
        command = "pip install ./packages/runtime" if package == "ulna_runtime" else "pip install 'ulna[export]'"
        raise UsageError(f"exported files need {package}, which is not installed; {command}") from None
