"""From the description of a network of others to the network: its constructor, its keywords, and the sizes that it takes."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ulna.errors import UsageError, brief, printable, unknown
from ulna.networks.foreign import libraries
from ulna.networks.foreign.code import class_of, digest_of, first_line
from ulna.networks.foreign.encoder import check_file
from ulna.networks.foreign.network import ForeignNetwork
from ulna.networks.foreign.outputs import read_maps
from ulna.networks.foreign.sizes import Try, check_sizes, find_sizes, passes
from ulna.recipe import Foreign, parse, read_source

log = logging.getLogger(__name__)

# what constructors call what the data say; the first that one has is given
NAMES = {
    "in_channels": ("in_channels", "num_channels", "n_channels", "input_channels"),
    "classes": ("out_channels", "classes", "num_classes", "n_classes"),
    "spatial_dims": ("spatial_dims", "dims"),
}


class Shape(NamedTuple):
    """What the data say of a network."""

    in_channels: int
    classes: int
    spatial_dims: int


def named_foreign(name: str) -> Foreign:
    """The network of others of that name, with the options that ulna states for it. No code of a file is run.

    Raises:
        UsageError: for a name that is not known, with the nearest, or a library that is not there.
    """
    source = read_source(name)
    if source.kind == "module":
        return Foreign(source=name, digest=digest_of(Path(source.name)))
    row = libraries.row_of(source)
    libraries.maker_of(source)
    return Foreign(source=name, options=dict(row.options), answer=row.answer, version=libraries.version_of(source.kind))  # type: ignore[arg-type]


def check_options(foreign: Foreign) -> None:
    """Refuse options that the constructor has not, before data are read.

    Raises:
        UsageError: with the nearest name, or what is missing.
    """
    _keywords(foreign, Shape(1, 1, 2), maker_for(foreign))
    if foreign.encoder_weights is not None:
        check_file(foreign)


def foreign_network(
    foreign: Foreign, *, in_channels: int, classes: int, spatial_dims: int, generator: torch.Generator | None = None
) -> ForeignNetwork:
    """Make the network; on the meta device where that is torch's default, else with its own initial weights.

    Args:
        foreign: what it is.
        in_channels: C.
        classes: K.
        spatial_dims: 2 or 3.
        generator: its seed is that of the weights; None: torch's own stream.

    Raises:
        UsageError: if it cannot be made, or takes no image.
    """
    shape = Shape(in_channels, classes, spatial_dims)
    whole = sized(foreign, **shape._asdict())
    meta = torch.get_default_device().type == "meta"
    if meta or generator is None:
        module = _made(foreign, shape, meta=meta)
    else:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(generator.initial_seed())
            module = _made(foreign, shape, meta=False)
    return ForeignNetwork(
        module,
        in_channels,
        classes,
        divisor=_each(whole.divisor, spatial_dims),
        least=_each(whole.least, spatial_dims),
        answer=foreign.answer,
        source=foreign.source,
    )


def sized(foreign: Foreign, *, in_channels: int, classes: int, spatial_dims: int, **_: Any) -> Foreign:
    """With the sizes that it takes: those that are stated, else found by trying.

    Raises:
        UsageError: if it takes none, or what is stated is of another number of axes.
    """
    for name in ("divisor", "least"):
        stated = getattr(foreign, name)
        if stated is not None and len(stated) not in (1, spatial_dims):
            raise UsageError(
                f"architecture.foreign.{name}={list(stated)} does not fit a {spatial_dims}D network; give {spatial_dims} "
                "numbers"
            )
    if foreign.divisor is not None:
        return foreign.replaced(
            divisor=_each(foreign.divisor, spatial_dims),
            least=_each(foreign.least or foreign.divisor, spatial_dims),
        )
    divisor, least = _found(json.dumps(foreign.model_dump(mode="json")), Shape(in_channels, classes, spatial_dims))
    return foreign.replaced(divisor=divisor, least=foreign.least or least)


def tried(foreign: Foreign, *, in_channels: int, classes: int, spatial_dims: int, **_: Any) -> Foreign:
    """As `sized`, but what is stated is tried too: for planning.

    Raises:
        UsageError: if the network does not take what is stated.
    """
    shape = Shape(in_channels, classes, spatial_dims)
    whole = sized(foreign, **shape._asdict())
    if foreign.divisor is not None:
        _check(json.dumps(whole.model_dump(mode="json")), shape)
    return whole


@lru_cache(maxsize=64)
def _found(stored: str, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    foreign = parse(Foreign, json.loads(stored))
    return find_sizes(_passes(foreign, shape), shape.spatial_dims, printable(foreign.source))


@lru_cache(maxsize=64)
def _check(stored: str, shape: Shape) -> None:
    foreign = parse(Foreign, json.loads(stored))
    check_sizes(_passes(foreign, shape), foreign.divisor or (), foreign.least or (), printable(foreign.source))


def _passes(foreign: Foreign, shape: Shape) -> Try:
    read = partial(_read, foreign, shape.classes)
    return passes(_made(foreign, shape, meta=True), shape.in_channels, read)


def _read(foreign: Foreign, classes: int, given: Any, size: Any) -> object:
    who = printable(foreign.source)
    maps = read_maps(given, size, classes, answer=foreign.answer, who=who)
    for one in maps.values():
        made = "" if one.grad_fn is None else one.grad_fn.name()
        if made.startswith(("SigmoidBackward", "SoftmaxBackward")):
            raise UsageError(
                f"{who}: gives probabilities, and logits are wanted; leave out its last sigmoid or softmax"
            )
    return maps


def note_version(foreign: Foreign | None) -> None:
    """Say once where a network was trained with another version of its library than is here."""
    if foreign is not None and foreign.version is not None:
        _note_version(foreign.source, foreign.version, libraries.version_of(foreign.named.kind))


@cache
def _note_version(source: str, then: str, now: str) -> None:
    if then != now:
        log.warning(
            "note: %s was trained with %s, and %s is here: it may answer otherwise", source, printable(then), now
        )


def maker_for(foreign: Foreign) -> Callable[..., Any]:
    source = foreign.named
    return class_of(foreign) if source.kind == "module" else libraries.maker_of(source)


def _made(foreign: Foreign, shape: Shape, *, meta: bool) -> nn.Module:
    """The module itself, as its constructor makes it."""
    make = maker_for(foreign)
    keywords = _keywords(foreign, shape, make)
    if meta:
        try:
            with _without_memory():
                return _checked(make(**keywords), foreign)
        except UsageError:
            raise
        except Exception as error:  # whatever the code of others raises
            if not foreign.is_code:  # a stranger's recipe may ask for more memory than there is
                raise _not_made(foreign, shape, error) from error
            # a constructor that reads values of its tensors needs them
            log.debug("%s: made with memory: %s", foreign.source, error)
    try:
        with torch.device("cpu"):
            module = _checked(make(**keywords), foreign)
    except UsageError:
        raise
    except Exception as error:
        raise _not_made(foreign, shape, error) from error
    return module.to("meta") if meta else module


def _not_made(foreign: Foreign, shape: Shape, error: Exception) -> UsageError:
    if isinstance(error, MemoryError) or "memory" in str(error).lower():  # told as everywhere
        raise error
    return UsageError(
        f"{printable(foreign.source)}: cannot be made for {shape.in_channels} channels, {shape.classes} maps and "
        f"{shape.spatial_dims}D with options {brief(foreign.options)}: {type(error).__name__}: {first_line(error)}"
    )


def _checked(module: Any, foreign: Foreign) -> nn.Module:
    who = printable(foreign.source)
    if not isinstance(module, nn.Module):
        raise UsageError(f"{who}: makes {type(module).__name__}; a torch.nn.Module is wanted")
    parameters = list(module.parameters())
    if not parameters:
        raise UsageError(f"{who}: has no parameters; there is nothing to train")
    if any(map(is_lazy, (*parameters, *module.buffers()))):
        raise UsageError(f"{who}: holds lazy layers, whose sizes are not known yet; state them in its constructor")
    return module


def _keywords(foreign: Foreign, shape: Shape, make: Callable[..., Any]) -> dict[str, Any]:
    """What the constructor is called with.

    Raises:
        UsageError: for an option that it has not, with the nearest, and for what it asks for beside.
    """
    who, kind = printable(foreign.source), foreign.named.kind
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        raise UsageError(f"{who}: its constructor does not tell its keywords") from None
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    given: dict[str, Any] = {}
    for fact, names in NAMES.items():
        name = next((name for name in names if name in known), None)
        if name is None and any_keyword and fact != "spatial_dims":
            name = names[0]
        if name is not None:
            given[name] = getattr(shape, fact)
        elif fact != "spatial_dims":
            raise UsageError(f"{who}: its constructor takes none of {', '.join(names)}; give it a keyword {names[0]}")
    if kind == "smp":
        if shape.spatial_dims != 2:
            raise UsageError(f"{who}: segmentation_models.pytorch has 2D networks alone")
        given |= {"encoder_name": foreign.named.rest, "encoder_weights": None}
    for option in foreign.options:
        if kind != "module" and any(word in option for word in libraries.FETCHING):
            raise UsageError(f"{who}: {_refused(kind, option)}")
        if option in given:
            raise UsageError(
                f"{who}: {option} is said already, by the data or the name: {given[option]!r}; leave it out"
            )
        if option not in known and not any_keyword:
            raise unknown(f"option of {who}", option, [name for name in known if name not in given])
    missing = [
        n for n in known if parameters[n].default is inspect.Parameter.empty and n not in {**given, **foreign.options}
    ]
    if missing:
        raise UsageError(
            f"{who}: its constructor needs {', '.join(missing)}; add --set architecture.foreign.options.{missing[0]}=VALUE"
        )
    return {**given, **foreign.options}


def _refused(kind: str, option: str) -> str:
    if option == "activation":
        return "activation is left out: ulna makes probabilities of logits itself"
    remedy = ": architecture.foreign.encoder_weights=FILE" if kind == "smp" else ""
    return f"{option} is not taken, for ulna downloads nothing; weights of an encoder come from a local file{remedy}"


def _each(value: Any, dims: int) -> tuple[int, ...]:
    numbers = tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


class _NumbersWithMemory(TorchFunctionMode):
    """Rates that constructors draw with `linspace` and read at once are numbers, not maps: they have memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


@contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), _NumbersWithMemory():
        yield
