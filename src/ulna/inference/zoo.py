"""`zoo:NAME`: a segmenter that comes with ulna-runtime, wherever a run or an exported file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulna.errors import UsageError
from ulna.system.extras import need
from ulna.system.names import is_of_the_zoo


def located(run: str | Path) -> Path:
    """The path that a word means: the file of a segmenter of the zoo, else what it says.

    Raises:
        UsageError: if ulna-runtime is not installed, or has no segmenter of that name.
    """
    if not is_of_the_zoo(run):
        return Path(run)
    runtime: Any = need("ulna_runtime.zoo")
    try:
        found: Path = runtime.located(run)
    except need("ulna_runtime.errors").UsageError as error:
        raise UsageError(str(error)) from None
    return found
