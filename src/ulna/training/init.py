"""`--init`: a training that begins with the weights of another, as far as they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ulna.errors import UsageError, listed, printable
from ulna.inference.fold_runs import is_cross_validation
from ulna.inference.zoo import located
from ulna.networks.build import from_architecture
from ulna.networks.foreign import OF_OTHERS
from ulna.networks.network import Network
from ulna.networks.weights import not_finite
from ulna.recipe import Architecture, Plan, Recipe, from_yaml, parse
from ulna.system.extras import need
from ulna.system.files import read_foreign
from ulna.system.names import RUN_FILE
from ulna.training.taken import COUNTED, encoder_names

SHOWN = 3  # names in a message
OUTSIDE = "all that is no part of the encoder"  # of a file that holds an encoder alone
# what a network is made of; the others say how large it is, which the shapes of its weights say too
MADE_OF = ("topology", "conv", "skip", "up", "down", "head", "readout")


class Start(NamedTuple):
    """Weights to begin with.

    Args:
        source: as it was named.
        weights: by the names of the network that they were trained in.
        recipe: of that network; None where the file does not say it.
    """

    source: str
    weights: Mapping[str, Tensor]
    recipe: Recipe | None


def read_start(source: str) -> Start:
    """The weights of a run folder, a file of `ulna export` that holds them, a safetensors file, or `zoo:NAME`.

    Raises:
        UsageError: if there are none, or they are damaged.
    """
    path, name = located(source), printable(source)
    if path.is_dir():
        if is_cross_validation(path):
            raise UsageError(f"--init {name}: is a cross-validation; name one of its folds, such as {path / 'fold_0'}")
        if not (path / RUN_FILE).exists():
            raise UsageError(f"--init {name}: is no run folder (no {RUN_FILE}); name one, or a file with weights")
        if not (path / "weights.safetensors").exists():
            raise UsageError(f"--init {name}: holds no weights yet; wait for its first epoch")
        recipe = from_yaml(Recipe, path / RUN_FILE)
        start = Start(source, read_foreign(path / "weights.safetensors"), recipe)
    elif path.suffix == ".safetensors":
        start = Start(source, read_foreign(path), None)
    else:
        start = _exported(source, path)
    if faults := not_finite(start.weights):
        raise UsageError(f"--init {name}: {listed(faults, SHOWN)}; name weights of a training that went well")
    return start


def _exported(source: str, path: Path) -> Start:
    bundles, name = need("ulna_runtime.bundle"), printable(source)
    try:
        bundle = bundles.read_bundle(path)
    except need("ulna_runtime.errors").UsageError as error:
        raise UsageError(f"--init {printable(error)}") from None
    if bundle.weights is None:
        raise UsageError(
            f"--init {name}: holds graphs alone; name the run that it was exported from, or export that with --with-weights"
        )
    try:
        weights = load(bundle.weights)
        recipe = parse(Recipe, bundle.pipeline["members"][0]["recipe"], source=f"{name}: recipe")
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"--init {name}: its weights cannot be read ({printable(error)}); export it again") from None
    return Start(source, weights, recipe)


def start_of(recipe: Recipe) -> Start | None:
    """The weights that a training begins with; None where it begins at random."""
    return None if recipe.training.init is None else read_start(recipe.training.init)


def check_dims(start: Start, dims: int) -> None:
    """Refuse weights of volumes for pictures; those of pictures fit the slices of volumes.

    Raises:
        UsageError: if they do not fit.
    """
    if dims == 2 and any(tensor.ndim == 5 for tensor in start.weights.values()):
        raise UsageError(
            f"--init {printable(start.source)}: is a network of volumes, and these images are 2D; name weights of a 2D one"
        )


def check_start(start: Start, recipe: Recipe, plan: Plan) -> list[str]:
    """Whether weights fit a training; what of them does not, because there are other channels or classes.

    Args:
        start: the weights.
        recipe: resolved.
        plan: of the data set.

    Raises:
        UsageError: if they are of another architecture.
    """
    name = printable(start.source)
    if start.recipe is not None:
        _check_made_alike(name, start.recipe.architecture, recipe.architecture)
    network = _built(recipe, plan)
    own, encoder = network.state_dict(), tuple(f"{part}." for part in encoder_names(network))
    weights = _named_for(own, start.weights)
    free = _free_axes(own, _built(recipe, plan, channels=1).state_dict(), _built(recipe, plan, classes=1).state_dict())
    missing = [one for one in own if one not in weights]
    left: list[str] = []
    if start.recipe is None and weights and all(one.startswith(encoder) for one in weights):
        left += [OUTSIDE] if missing else []  # a file of an encoder alone
        missing = [one for one in missing if one.startswith(encoder) and not one.endswith(COUNTED)]
    faults = [f"{one} is missing there" for one in missing]
    faults += [f"{printable(one)} belongs to no part of this network" for one in weights if one not in own]
    for one, tensor in own.items():
        theirs = weights.get(one, tensor)
        if theirs.shape == tensor.shape:
            continue
        told = f"{one} ({_shape(theirs)} there, {_shape(tensor)} here)"
        same = theirs.ndim == tensor.ndim
        differing = {n for n, a in enumerate(theirs.shape) if same and a != tensor.shape[n]}
        fits = same and differing <= free[one]
        (left if fits else faults).append(told)
    if faults:
        raise UsageError(
            f"--init {name}: is of another architecture ({listed(faults, SHOWN)}); leave --model and architecture.* out to "
            "train its network, or name weights of this one"
        )
    return left


def started(start: Start, left: Sequence[str]) -> str:
    """What a training begins with, in one line."""
    differing = [one for one in left if one != OUTSIDE]
    anew = f"; begun anew, as channels or classes differ: {listed(differing, 6)}" if differing else ""
    anew += f"; as drawn: {OUTSIDE}" if OUTSIDE in left else ""
    taken = f"{len(start.weights) - len(differing)} of {len(start.weights)}"
    return f"begun with {taken} weights of {printable(start.source)}{anew}"


def begin_with(network: Network, start: Start) -> list[str]:
    """Put weights into a network that they fit; what depends on other channels or classes stays as it is.

    Returns:
        The names of what was taken.
    """
    own = network.state_dict()
    taken = {n: w for n, w in _named_for(own, start.weights).items() if w.shape == own[n].shape}
    network.load_state_dict(taken, strict=False)
    return list(taken)


def _check_made_alike(name: str, theirs: Architecture, own: Architecture) -> None:
    differing = [field for field in MADE_OF if getattr(theirs, field) != getattr(own, field)]
    if differing:
        raise UsageError(
            f"--init {name}: is of another architecture ({', '.join(f'architecture.{field}' for field in differing)} "
            "differs); name weights of the same network, or train the network that it is"
        )


def _named_for(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights of a network of others that was saved without ulna, by the names that they have in ulna's."""
    renamed = {f"{OF_OTHERS}{name}": one for name, one in weights.items()}
    return renamed if weights and any(name in own for name in renamed) else weights


def _built(recipe: Recipe, plan: Plan, *, channels: int = 0, classes: int = 0) -> Network:
    """The network of a training, without memory; with so many more channels and classes."""
    with torch.device("meta"):
        return from_architecture(
            recipe.architecture,
            in_channels=plan.inputs + channels,
            classes=plan.labels.outputs + classes,
            spatial_dims=plan.spatial_dims,
            multilabel=plan.labels.multilabel,
        )


def _free_axes(own: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """The axes of weights that are longer in others."""
    return {
        name: {n for other in others for n, size in enumerate(tensor.shape) if other[name].shape[n] != size}
        for name, tensor in own.items()
    }


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
