"""From an architecture to a network: the arithmetic of channels, and nothing else."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ulna.blocks import SLOTS, nd
from ulna.blocks.spatial_dependency import SpatialDependency
from ulna.errors import UsageError, printable, unknown
from ulna.networks.catalog import NAMED
from ulna.networks.checking import check_levels, check_slots
from ulna.networks.foreign import foreign_network, match_foreign, named_foreign, permit_named, sized
from ulna.networks.heads import HEADS, Head
from ulna.networks.heads.decoder import WeightNormLinear
from ulna.networks.network import Network, Stage
from ulna.networks.wiring import TOPOLOGIES, Node, Wiring
from ulna.recipe import MOST_CHANNELS, Architecture, Foreign, Slot, is_foreign, parse


def build(
    name: str,
    *,
    in_channels: int = 1,
    classes: int = 1,
    spatial_dims: int = 2,
    multilabel: bool = False,
    parameters: int | None = None,
    generator: torch.Generator | None = None,
    **changes: Any,
) -> Network:
    """Build a network of the family by name.

    Args:
        name: a name of `models()`, such as "unetpp" or "zhou/unetpp_ds", or of a network of others: "monai:SegResNet".
        in_channels: C of the images.
        classes: logit maps; 1 is binary with a sigmoid, K > 1 a softmax over K maps with background.
        spatial_dims: 2 or 3.
        multilabel: every map has a sigmoid of its own.
        parameters: a budget; every width is scaled by one factor to come as close to it as possible.
        generator: source of the initial weights; None takes torch's own.
        changes: fields of `Architecture` to change, such as `conv="residual"` or `deep_supervision=False`; of a network
            of others keywords of its constructor.

    Returns:
        A network: (N, C, *S) -> logits (N, classes, *S), any spatial size.

    Raises:
        UsageError: for an unknown name, field, block or option (with the nearest valid one), or an impossible request.

    Example:
        >>> net = build("unetpp", in_channels=3, channels=(4, 8, 16))
        >>> net(torch.zeros(1, 3, 33, 20)).shape
        torch.Size([1, 1, 33, 20])
    """
    permit_named(name)
    architecture = named(name)
    if architecture.foreign is not None:
        own = architecture.foreign
        architecture = architecture.replaced(foreign=own.replaced(options={**own.options, **changes}))
    else:
        architecture = architecture.replaced(**changes)
    shape: dict[str, Any] = {
        "in_channels": in_channels,
        "classes": classes,
        "spatial_dims": spatial_dims,
        "multilabel": multilabel,
    }
    if parameters is not None:
        architecture = match_width(architecture, parameters, **shape)
    return from_architecture(architecture, generator=generator, **shape)


def named(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: for an unknown name, with the nearest.
    """
    if is_foreign(name):
        return Architecture(foreign=named_foreign(name))
    if name.startswith("nnunetv2:"):
        raise UsageError(
            f"{printable(name)}: is nnU-Net itself, a row of ulna compare; ulna trains nnunet and nnunet_resenc"
        )
    if name not in NAMED:
        raise unknown("model", name, NAMED)
    return NAMED[name].architecture


def recommends(name: str) -> Mapping[str, Any]:
    """What a named network needs to train as meant, as changes of the default recipe; nothing for one of others."""
    return {} if is_foreign(name) else NAMED[name].recipe


def from_architecture(
    architecture: Architecture,
    *,
    in_channels: int,
    classes: int,
    spatial_dims: int,
    multilabel: bool = False,
    generator: torch.Generator | None = None,
) -> Network:
    """Build the network that an architecture describes; see `build` for arguments and errors."""
    nd.check_dims(spatial_dims)
    if in_channels < 1 or classes < 1:
        raise UsageError(f"in_channels and classes are 1 or more; got {in_channels} and {classes}")
    if architecture.foreign is not None:
        return foreign_network(
            architecture.foreign,
            in_channels=in_channels,
            classes=classes,
            spatial_dims=spatial_dims,
            generator=generator,
        )
    channels = widths(architecture, spatial_dims)
    steps = _steps(architecture, len(channels), spatial_dims)
    divisor = tuple(math.prod(step[axis] for step in steps) for axis in range(spatial_dims))
    check_levels(len(channels), divisor)
    wiring = wire(architecture)
    check_slots(architecture)
    reads = _reads(architecture, wiring)
    if architecture.ends_at is not None:
        if architecture.ends_at not in ends(architecture):
            raise UsageError(f"architecture.ends_at: {unknown('head', architecture.ends_at, ends(architecture))}")
        reads = (architecture.ends_at,)
    wiring = wiring.keep(*reads)._replace(heads=tuple(name for name in wiring.heads if name in reads))

    width: dict[str, int] = {}
    stages: dict[str, nn.Module] = {}
    for node in wiring.nodes:
        want, wide = channels[node.level], width[node.source] if node.source else in_channels
        resample = _resample(architecture, wiring, node, node.source, spatial_dims, wide, want, steps)
        wide = getattr(resample, "out_channels", wide)
        fuse: Any = None
        bring: nn.ModuleList | None = None
        if node.skips:
            brought = [
                _resample(architecture, wiring, node, skip, spatial_dims, width[skip], want, steps)
                for skip in node.skips
            ]
            skip_widths = tuple(
                getattr(one, "out_channels", width[skip]) for one, skip in zip(brought, node.skips, strict=True)
            )
            if any(wiring.node(skip).level != node.level for skip in node.skips):
                bring = nn.ModuleList(brought)
            fuse = _block("skip", architecture.skip, node, len(channels), spatial_dims, wide, skip_widths)
            wide = fuse.out_channels
        convolve: Any = nn.Identity()
        if node.convolve:
            convolve = _block("conv", architecture.conv, node, len(channels), spatial_dims, wide, want)
            wide = convolve.out_channels
        stages[node.name] = Stage(resample, fuse, convolve, bring)
        width[node.name] = wide

    head = _head(architecture, spatial_dims, {name: width[name] for name in reads}, classes, exclusive=not multilabel)
    network = Network(wiring, stages, head, in_channels, divisor)
    if not next(network.parameters()).is_meta:  # for counting alone, there are no weights to draw
        initialise(network, generator)
    return network


def wire(architecture: Architecture) -> Wiring:
    """The wiring of an architecture, all heads included."""
    if architecture.topology not in TOPOLOGIES:
        raise unknown("topology", architecture.topology, TOPOLOGIES)
    return TOPOLOGIES[architecture.topology](levels(architecture))


def ends(architecture: Architecture) -> tuple[str, ...]:
    """The heads at which this network can end, in the order of its wiring: those that answer at the image's own size.

    A head that is upsampled answers there, whatever its level.

    Source: UNet++ (zhou2018), Sec. 3.2: the number of the head is the level of pruning, L1 to L4.

    Raises:
        UsageError: for an unknown topology or head, with the nearest.
    """
    if architecture.foreign is not None:
        return ()
    wiring = wire(architecture)
    reads = _reads(architecture, wiring)
    if not HEADS[architecture.head.kind].prunable:
        return ()
    upsampled = bool(architecture.head.options.get("upsample"))
    return tuple(name for name in reads if upsampled or wiring.node(name).level == 0)


def levels(architecture: Architecture) -> int:
    """Number of resolutions."""
    stated = {
        "channels": len(architecture.channels) if architecture.channels is not None else None,
        "strides": len(architecture.strides) + 1 if architecture.strides is not None else None,
        "levels": architecture.levels,
    }
    given = {name: number for name, number in stated.items() if number is not None}
    if len(set(given.values())) > 1:
        parts = ", ".join(f"{name} give {number}" for name, number in given.items())
        raise UsageError(
            f"architecture: the number of levels is not clear: {parts}; strides has one entry fewer than levels"
        )
    return next(iter(given.values()), architecture.max_levels)


def widths(architecture: Architecture, spatial_dims: int) -> tuple[int, ...]:
    """Channels at every level, finest first."""
    if architecture.channels is not None:
        return architecture.channels
    most = architecture.max_channels or MOST_CHANNELS[spatial_dims]
    return tuple(min(architecture.base_channels * 2**level, most) for level in range(levels(architecture)))


def match_width(
    architecture: Architecture,
    target: float,
    *,
    size: Callable[[Network], float] | None = None,
    words: str = "{:,.0f} parameters",
    nearest: bool = False,
    **shape: Any,
) -> Architecture:
    """Scale every width by one factor so that the network comes as close to a size as whole widths allow.

    Source: modular U-Net (laird2019), Sec. 5.1, compares networks of 8.5 M parameters each.

    Args:
        architecture: its widths are scaled, whether it states them or not.
        target: the size to come close to.
        size: what is counted, on a network without memory; left out, its parameters.
        words: how a size is written in messages.
        nearest: where a foreign network cannot reach the size, take the closest that its widths allow.
        shape: `in_channels`, `classes`, `spatial_dims` and `multilabel` of the network.

    Raises:
        UsageError: if even widths of 1 are larger.
    """
    if architecture.foreign is not None:

        def of(foreign: Foreign) -> float:
            with torch.device("meta"):
                return (size or count_parameters)(from_architecture(Architecture(foreign=foreign), **shape))

        own = sized(architecture.foreign, **shape)
        return Architecture(foreign=match_foreign(own, target, of, words, nearest=nearest))
    base = widths(architecture, shape["spatial_dims"])
    counted: dict[tuple[int, ...], float] = {}

    def scaled(factor: float) -> tuple[int, ...]:
        return tuple(max(1, round(width * factor)) for width in base)

    def count(channels: tuple[int, ...]) -> float:
        if channels not in counted:
            with torch.device("meta"):
                network = from_architecture(architecture.replaced(channels=channels, levels=None), **shape)
            counted[channels] = (size or count_parameters)(network)
        return counted[channels]

    low, high = 1 / (2 * max(base)), 1.0
    if count(scaled(low)) > target:
        least = words.format(count(scaled(low)))
        raise UsageError(f"cannot be scaled to {words.format(target)}: the narrowest such network has {least}")
    while count(scaled(high)) < target:
        high *= 2
    while scaled(low) != scaled(high) and high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if count(scaled(middle)) < target else (low, middle)
    channels = min(scaled(low), scaled(high), key=lambda channels: abs(count(channels) - target))
    return architecture.replaced(channels=channels, levels=None)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights: He normal for convolutions (code of zhou2018), biases 0.

    Reading: transposed convolutions, which have no activation behind them, and heads get variance 1 / fan-in. Spatial
    dependency layers draw their own.
    """
    heads = {id(m) for head in network.modules() if isinstance(head, Head) for m in head.modules()}
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            # kernel = stride: one output value reads one pixel of every input channel
            nn.init.normal_(module.weight, std=module.in_channels**-0.5, generator=generator)
        elif isinstance(module, WeightNormLinear):
            module.initialise(generator)
            continue
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            # He: variance 2 / fan-in ahead of a ReLU, 1 / fan-in ahead of nothing
            slope = 1.0 if id(module) in heads else 0.0
            nn.init.kaiming_normal_(module.weight, a=slope, nonlinearity="leaky_relu", generator=generator)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, SpatialDependency):
            module.draw(generator)


def _reads(architecture: Architecture, wiring: Wiring) -> tuple[str, ...]:
    if architecture.head.kind not in HEADS:
        raise unknown("head", architecture.head.kind, HEADS)
    return HEADS[architecture.head.kind].reads(
        wiring, deep_supervision=architecture.deep_supervision, readout=architecture.readout
    )


def _head(
    architecture: Architecture, spatial_dims: int, widths: dict[str, int], classes: int, *, exclusive: bool
) -> Head:
    kind, options = architecture.head.kind, architecture.head.options
    known = inspect.signature(HEADS[kind]).parameters
    # what an architecture says beside the options, for the heads that ask for it
    facts = {n: v for n, v in {"readout": architecture.readout, "exclusive": exclusive}.items() if n in known}
    return _made("head", kind, HEADS[kind], (spatial_dims, widths, classes), options, facts)


def _steps(architecture: Architecture, count: int, spatial_dims: int) -> list[tuple[int, ...]]:
    strides: Sequence[Any] = architecture.strides if architecture.strides is not None else [2] * (count - 1)
    return [nd.per_axis(step, spatial_dims) for step in strides]


def _resample(
    architecture: Architecture,
    wiring: Wiring,
    node: Node,
    source: str | None,
    spatial_dims: int,
    wide: int,
    want: int,
    steps: list[tuple[int, ...]],
) -> Any:
    """What brings a map to the level of a node, by the down or up op of that node; several levels are one long step."""
    level = node.level if source is None else wiring.node(source).level
    if level == node.level:
        return nn.Identity()
    slot, entries = ("down", architecture.down) if level < node.level else ("up", architecture.up)
    between = steps[min(level, node.level) : max(level, node.level)]
    stride = tuple(math.prod(step[axis] for step in between) for axis in range(spatial_dims))
    return _block(slot, entries, node, len(steps) + 1, spatial_dims, wide, want, stride)


def _block(slot: str, entries: Sequence[Slot], node: Node, count: int, *arguments: Any) -> Any:
    entry = next((e for e in entries if _fits(e, node, count)), None)
    if entry is None:
        raise UsageError(f"architecture.{slot}: no entry fits node {node.name}; end the list with one without limits")
    blocks = SLOTS[slot]
    if entry.kind not in blocks:
        raise unknown(f"{slot} block", entry.kind, blocks)
    return _made(slot, entry.kind, blocks[entry.kind], arguments, entry.options)


def _made(
    slot: str,
    kind: str,
    make: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Any:
    """A block or a head; every fault of its options names the slot and the kind."""
    facts = facts or {}
    keywords = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in keywords if name not in facts]
    for option in options:
        if option not in known:
            raise unknown(f"option of {slot} block {kind!r}", option, known)
    try:
        return make(*arguments, **options, **facts)
    except UsageError as error:
        raise UsageError(f"architecture.{slot}.{kind}: {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"architecture.{slot}.{kind}: options {dict(options)} do not work: {error}") from None


def _fits(entry: Slot, node: Node, count: int) -> bool:
    at = None if entry.levels is None else [level + count if level < 0 else level for level in entry.levels]
    return (
        (at is None or node.level in at)
        and (entry.paths is None or node.path in entry.paths)
        and (entry.nodes is None or node.name in entry.nodes)
    )


def validate(architecture: Architecture, **shape: Any) -> Network:
    """Build on the meta device: every error of `build`, without touching memory."""
    with torch.device("meta"):
        return from_architecture(parse(Architecture, architecture.model_dump()), **shape)
