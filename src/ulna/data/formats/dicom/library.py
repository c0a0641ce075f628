"""pydicom and highdicom, imported where they are needed, and kept from printing what they read."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

from ulna.errors import UsageError

_MISSING = "DICOM needs {name}, which is not installed; pip install 'ulna[dicom]'"


def pydicom() -> Any:
    """The module.

    Raises:
        UsageError: if it is not installed, naming the extra.
    """
    return _imported("pydicom", "pydicom")


def highdicom() -> Any:
    """The module; see `pydicom`."""
    _imported("pydicom", "pydicom")
    return _imported("highdicom", "highdicom")


def _imported(module: str, name: str) -> Any:
    with suppress(ValueError):  # another thread changed the list of filters at the same moment
        # their warnings show the values of elements, and these may name a person
        warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|openjpeg|pylibjpeg)(\..*)?$")
    try:
        found = import_module(module)
    except ImportError:
        raise UsageError(_MISSING.format(name=name)) from None
    logging.getLogger(module).setLevel(logging.CRITICAL)
    return found
