"""pydicom and highdicom, imported where they are needed, and kept from printing what they read."""

from __future__ import annotations

import logging
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

from ulna.errors import UsageError

_THEIRS = r"(pydicom|highdicom|openjpeg|pylibjpeg)(\..*)?$"
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
    if not _held_back():
        with suppress(ValueError):  # another thread changed the list of filters at the same moment
            warnings.filterwarnings("ignore", module=_THEIRS)
    try:
        found = import_module(module)
    except ImportError:
        raise UsageError(_MISSING.format(name=name)) from None
    logging.getLogger(module).setLevel(logging.CRITICAL)
    return found


def _held_back() -> bool:
    """Whether their warnings are: these show the values of elements, which may name a person.

    A filter that is the first one stays there: while it is moved, a warning of another thread would pass.
    """
    first = warnings.filters[0] if warnings.filters else None
    return first is not None and first[0] == "ignore" and getattr(first[3], "pattern", "") == _THEIRS
