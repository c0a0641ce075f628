"""The gate before the code of others: a file runs only where a person named it, or allowed the run that holds it.

What is permitted is the content of a file, by its digest, for as long as this process lives. A run keeps a copy of the file
(`network.py`), so that it needs nothing beside its folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ulna.errors import UsageError, listed, printable, unknown
from ulna.recipe import Foreign, is_foreign, read_source

CODE_FILE = "network.py"  # of a run
MOST_BYTES = 1 << 22  # no file of code is so long

_permitted: dict[str, Path] = {}  # digest -> the file
_loaded: dict[str, Any] = {}  # digest -> its module


def digest_of(path: Path) -> str | None:
    """sha256 of a file; None where it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def permit_named(model: str) -> None:
    """Let the file run that a person named as the model of a command: `module:FILE.py:CLASS`. Other names need no leave.

    Raises:
        UsageError: if there is no such file.
    """
    if not is_foreign(model) or (source := read_source(model)).kind != "module":
        return
    path = Path(source.name)
    digest = digest_of(path)
    if digest is None:
        raise UsageError(f"{printable(path)}: no such file, or none that can be read; --model module:FILE.py:CLASS")
    _permitted[digest] = path


def permit(foreign: Foreign | None, *folders: Path) -> None:
    """Let the code run that a recipe names, as a person has allowed: it must be the very file that the recipe was made for.

    Args:
        foreign: of the recipe.
        folders: that may hold a copy of it, as runs do.

    Raises:
        UsageError: if the file is gone, or has changed since.
    """
    if foreign is None or not foreign.is_code or foreign.digest in _permitted:
        return
    if foreign.digest is None:
        permit_named(foreign.source)
        return
    places = [*(folder / CODE_FILE for folder in folders), Path(foreign.named.name)]
    there = {path: digest for path in places if (digest := digest_of(path)) is not None}
    same = next((path for path, digest in there.items() if digest == foreign.digest), None)
    if same is None:
        which = listed(there or places)
        raise UsageError(
            f"{which}: {'has changed since' if there else 'is gone, which is the code of the network of'} this run "
            f"(sha256 {foreign.digest[:12]}); bring back the file that it was trained with"
        )
    _permitted[foreign.digest] = same


def permit_stored(foreign: Foreign | None, run: Path, *, allow_code: bool) -> None:
    """Let the code of a run be executed, where a person allows it.

    Raises:
        UsageError: if the network is code and nobody allowed it, or the file is not the one that the run was trained with.
    """
    if foreign is None or not foreign.is_code or foreign.digest in _permitted:
        return
    if not allow_code:
        raise UsageError(
            f"{printable(run)}: its network is code of its own, {printable(foreign.named.name)}, which is run only where you "
            "say so: read it, then add --allow-code (in Python: allow_code=True)"
        )
    permit(foreign, run, *sorted(run.glob("fold_*")))


def is_permitted(foreign: Foreign | None) -> bool:
    """Whether a network is code that a person named in this process."""
    return foreign is not None and foreign.is_code and foreign.digest in _permitted


def allow_flag(foreign: Foreign | None) -> list[str]:
    """What a command needs that goes on with such a network."""
    return ["--allow-code"] if foreign is not None and foreign.is_code else []


def check_named(foreign: Foreign | None, source: object) -> None:
    """Refuse code that no person has named: that of a recipe or a plan from a file.

    Raises:
        UsageError: with what to type.
    """
    if foreign is not None and foreign.is_code and foreign.digest not in _permitted:
        raise UsageError(
            f"{printable(source)}: names code as its network, {printable(foreign.source)}, which is run only where you say "
            f"so: read it, then name it yourself, --model {printable(foreign.source)} (--models in ulna compare), or add "
            "--allow-code to ulna train"
        )


def file_of(foreign: Foreign | None) -> bytes | None:
    """The content of the permitted file of a network that is code, for the run to keep; else None."""
    if foreign is None or not foreign.is_code:
        return None
    path = _permitted[str(foreign.digest)]
    if digest_of(path) != foreign.digest:
        raise UsageError(f"{printable(path)}: was changed while the training was planned; start again")
    return path.read_bytes()


def class_of(foreign: Foreign) -> Callable[..., Any]:
    """The class, or function, that makes the network; its file is executed once a process.

    Raises:
        UsageError: if it is not permitted, cannot be executed, or has no such class.
    """
    name = foreign.named.rest
    module = _module(foreign)
    if name:
        made = getattr(module, name, None)
        if not callable(made):
            own = [n for n, one in vars(module).items() if callable(one) and not n.startswith("_")]
            raise UsageError(f"{printable(foreign.named.name)}: {unknown('class', name, _classes(module) or own)}")
        return made
    found = _classes(module)
    if len(found) != 1:
        told = f"several classes ({listed(found)})" if found else "no class that is a torch.nn.Module"
        raise UsageError(
            f"{printable(foreign.named.name)}: holds {told}; name the one that is meant: module:FILE.py:CLASS"
        )
    return getattr(module, found[0])


def _classes(module: Any) -> list[str]:
    own = vars(module).items()
    return [
        n
        for n, one in own
        if isinstance(one, type) and issubclass(one, nn.Module) and one.__module__ == module.__name__
    ]


def _module(foreign: Foreign) -> Any:
    digest = str(foreign.digest)
    if digest not in _permitted:
        raise UsageError(f"{printable(foreign.source)}: is code, and nobody has allowed it to run")
    if digest not in _loaded:
        path = _permitted[digest]
        if digest_of(path) != digest:
            raise UsageError(f"{printable(path)}: has changed since this command was given; start again")
        name = f"ulna_network_{digest[:16]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{printable(path)}: is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickles of the module look it up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a stranger's code raises
            sys.modules.pop(name, None)
            raise UsageError(f"{printable(path)}: {_why(error)}") from error
        _loaded[digest] = module
    return _loaded[digest]


def _why(error: Exception) -> str:
    told = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, ImportError):
        return (
            f"cannot be imported ({told}); the file stands alone: what it imports must be installed, not lie beside it"
        )
    return f"cannot be executed ({told})"


def first_line(error: Exception) -> str:
    """What an error of others says, in one line."""
    return printable(next(iter(str(error).strip().splitlines()), "no reason given")[:300])


def forget(digests: Iterable[str] | None = None) -> None:
    """Take back what was permitted in this process; for tests."""
    for digest in [*_permitted] if digests is None else digests:
        _permitted.pop(digest, None)
        _loaded.pop(digest, None)
