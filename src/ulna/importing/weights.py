"""The verb `import-weights`: a file that others wrote with torch as safetensors, which ulna begins trainings with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ulna.errors import UsageError, listed, printable
from ulna.networks.foreign import read_checkpoint
from ulna.networks.weights import not_finite
from ulna.system.files import Tensors, write_tensors
from ulna.system.outputs import check_folder

ENDING = ".safetensors"


class Weight(NamedTuple):
    """One tensor of the file.

    Args:
        name: as it is written.
        shape: of it.
        numbers: float32, int64, ...
    """

    name: str
    shape: tuple[int, ...]
    numbers: str


@dataclass(frozen=True)
class Imported:
    """A file that `import_weights` wrote.

    Args:
        file: what was written.
        weights: in it.
        notes: how they were found, what was left out, and what is wrong with them.
    """

    file: Path
    weights: tuple[Weight, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"file": str(self.file), "weights": [one._asdict() for one in self.weights], "notes": list(self.notes)}


def import_weights(
    file: Path | str,
    /,
    *,
    out: Path | str,
    prefix: str = "",
    rename: Sequence[str] = (),
    overwrite: bool = False,
) -> Imported:
    """Write weights that others saved with torch as a safetensors file, for `ulna train --init` or an encoder.

    No code in the file is run: what would need that is refused. Weights are looked for under the names that checkpoints
    give them (state_dict, model, ...), and `module.` before all names is taken away; what was done is told.

    Args:
        file: what `torch.save` wrote (.pth, .pt, .ckpt), or a safetensors file.
        out: the file to write, with the ending .safetensors.
        prefix: take only the weights whose names begin so, such as encoder., and take it away.
        rename: OLD=NEW: give the names that begin with OLD another beginning; the first one that fits counts.
        overwrite: write over a file that stands there.

    Raises:
        UsageError: if the file holds anything else than tensors where its weights are, or cannot be read without code.

    Example:
        ulna import-weights resnet34.pth --prefix encoder. --out encoder.safetensors
    """
    file, out = Path(file), Path(out)
    rules = [_rule(text) for text in ([rename] if isinstance(rename, str) else rename)]
    if out.suffix != ENDING:
        raise UsageError(
            f"{printable(out)}: give --out a name that ends in {ENDING}, such as {printable(out.stem)}{ENDING}"
        )
    check_folder(out.parent)
    if out.exists() and not overwrite:
        raise UsageError(f"{printable(out)}: exists; choose another --out, or write over it with --overwrite")
    found = read_checkpoint(file, prefix)
    weights = _renamed(file, found.weights, rules)
    notes = [f"found under {' > '.join(found.inside)}"] if found.inside else []
    notes += [f"taken from the beginning of every name: {''.join(found.wrapped)}"] if found.wrapped else []
    notes += [f"left out: {listed(list(map(printable, found.beside)), 6)}"] if found.beside else []
    notes += [f"{fault}: no training begins with that" for fault in not_finite(weights)[:3]]
    # a copy each: some share their memory in the file
    tensors = {name: one.detach().clone().contiguous() for name, one in weights.items()}
    write_tensors(out, Tensors(tensors, {"imported_from": file.name}))
    listing = (Weight(n, tuple(one.shape), str(one.dtype).removeprefix("torch.")) for n, one in tensors.items())
    return Imported(out, tuple(listing), tuple(notes))


def _rule(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise UsageError(f"--rename {printable(text)}: write OLD=NEW, such as backbone.=encoder.")
    return old, new


def _renamed(file: Path, weights: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """The weights by their new names.

    Raises:
        UsageError: if a rule fits no name, or two weights get one name.
    """
    made: dict[str, Tensor] = {}
    used = set()
    for name, one in weights.items():
        rule = next((rule for rule in rules if name.startswith(rule[0])), None)
        if rule is not None:
            used.add(rule)
            name = rule[1] + name.removeprefix(rule[0])
        if name in made or not name:
            raise UsageError(
                f"{printable(file)}: --rename gives {printable(name) or 'nothing'} as the name of a weight twice"
            )
        made[name] = one
    for old, new in rules:
        if (old, new) not in used:
            raise UsageError(f"--rename {printable(old)}={printable(new)}: no name of {printable(file)} begins so")
    return made
