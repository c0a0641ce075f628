"""The catalogue of named networks, counted: parameters, work and slots of each."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ulna.errors import unknown
from ulna.kernels.sweep.dispatch import sweep_flops
from ulna.networks.build import count_parameters, validate
from ulna.networks.catalog import NAMED, Entry
from ulna.networks.network import Network
from ulna.networks.profile.ptflops import counting
from ulna.networks.profile.shapes import shapes_alone
from ulna.recipe import SPARSE_POINTS, Slot


@dataclass(frozen=True)
class Model:
    """One entry of the catalogue."""

    name: str
    entry: Entry
    _built: dict[tuple[int, ...], Network] = field(default_factory=dict, init=False, repr=False, compare=False)
    _work: list[tuple[float, float]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def paper(self) -> str:
        """Who published it, and where."""
        return self.entry.paper

    @property
    def note(self) -> str:
        """What this build is."""
        return self.entry.note

    @property
    def slots(self) -> dict[str, str]:
        """Topology, the four slots and the head, in words."""
        a = self.entry.architecture
        named = {slot: " / ".join(_words(e) for e in getattr(a, slot)) for slot in ("conv", "skip", "up", "down")}
        return {"topology": a.topology, **named, "head": a.head.kind, "readout": a.readout}

    def network(
        self, *, in_channels: int | None = None, classes: int | None = None, spatial_dims: int | None = None
    ) -> Network:
        """The network without memory behind it (meta device), for counting; what is left out is as in the paper."""
        image = self.entry.input
        shape = (in_channels or image[0], classes or self.entry.maps, spatial_dims or len(image) - 1)
        if shape not in self._built:  # building takes longer than any of the counts
            channels, maps, dims = shape
            self._built[shape] = validate(
                self.entry.architecture, in_channels=channels, classes=maps, spatial_dims=dims
            )
        return self._built[shape]

    def parameters(
        self, *, in_channels: int | None = None, classes: int | None = None, spatial_dims: int | None = None
    ) -> int:
        """Trainable parameters; channels, classes and dimensions that are left out are as in the paper.

        Example:
            >>> models("zhou/unet")[0].parameters()
            7759521
        """
        return count_parameters(self.network(in_channels=in_channels, classes=classes, spatial_dims=spatial_dims))

    def gmacs(
        self, size: tuple[int, ...] | None = None, *, in_channels: int | None = None, classes: int | None = None
    ) -> float:
        """Billions of multiply-accumulates of one forward pass over one image: products only.

        A head that reads points is counted at the number of points that it trains on.

        Args:
            size: of the image; left out, the one that the paper's figure holds for.
            in_channels: C; left out, as in the paper.
            classes: maps; left out, as in the paper.
        """
        if size is None and in_channels is None and classes is None:
            return self._counted()[0]
        size = size or self.entry.input[1:]
        network = self.network(in_channels=in_channels, classes=classes, spatial_dims=len(size))
        return count_gmacs(network, size, points=self.points(size))

    def ptflops_gmacs(self) -> float:
        """The same for the image of the paper's figure, under the rules of the counter that the SDU-Net paper used."""
        return self._counted()[1]

    def _counted(self) -> tuple[float, float]:
        """Both counts of the image of the paper's figure, of one pass."""
        if not self._work:
            network, size = self.network(), self.entry.input[1:]
            with counting(network) as operations:
                gmacs = count_gmacs(network, size, points=self.points(size))
            self._work.append((gmacs, sum(operations) / 1e9))
        return self._work[0]

    def points(self, size: tuple[int, ...]) -> int | None:
        """How many points of a patch it trains on by itself; None where it reads all voxels.

        Example:
            >>> [models(name)[0].points((96, 96, 64)) for name in ("implicit_unet", "marimont/implicit_unet", "unet")]
            [18432, 30000, None]
        """
        own, voxels = self.entry.recipe, math.prod(size)
        count = (
            round(own["points.fraction"] * voxels)
            if "points.fraction" in own
            else own.get("points.count", SPARSE_POINTS)
        )
        return min(count, voxels) if self.network().head.sparse else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "paper": self.paper,
            "note": self.note,
            "input": list(self.entry.input),
            "maps": self.entry.maps,
            "parameters": self.parameters(),
            "published_millions": self.entry.published or None,
            "gmacs": round(self.gmacs(), 4),
            "ptflops_gmacs": round(self.ptflops_gmacs(), 4),
            "published_gmacs": self.entry.published_gmacs or None,
            "mismatch": self.entry.mismatch or None,
            "slots": self.slots,
        }


def models(name: str | None = None, /) -> list[Model]:
    """All named networks, or the one of that name.

    Args:
        name: a network; left out, the whole catalogue.

    Raises:
        UsageError: for an unknown name, with the nearest.

    Example:
        ulna models unetpp
    """
    if name is not None and name not in NAMED:
        raise unknown("model", name, NAMED)
    return [Model(n, entry) for n, entry in NAMED.items() if name in (None, n)]


def count_gmacs(network: Network, size: tuple[int, ...], *, points: int | None = None) -> float:
    """Billions of multiply-accumulates of one forward pass: torch's FLOP counter, two operations each, and sweeps.

    Counted without values (meta device): as every operation is defined, whichever kernel would compute it.

    Args:
        network: on any device.
        size: S, of one image.
        points: read at so many points alone, as a training on sampled points does.
    """
    if not next(network.parameters()).is_meta:
        network = copy.deepcopy(network).to("meta")
    at = None if points is None else torch.zeros(1, points, len(size), dtype=torch.long, device="meta")
    formulas: dict[Any, Any] = {torch.ops.ulna.sweep: sweep_flops}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad(), shapes_alone(network):
        network.outputs(torch.zeros(1, network.in_channels, *size, device="meta"), at)
    return counter.get_total_flops() / 2e9


def kept_per_voxel(network: Network, size: tuple[int, ...], *, points: int | None = None) -> float:
    """Values that a training step keeps for its backward pass, weights aside, per voxel of an image of `size`.

    With `points`, the step reads so many points of the image alone.
    """
    network = copy.deepcopy(network).to("meta").train()
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # several operations may keep one tensor, and views of it
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        at = None if points is None else torch.zeros(2, points, len(size), dtype=torch.long, device="meta")
        outputs = network.outputs(torch.zeros(2, network.in_channels, *size, device="meta"), at)
    values = sum(t.untyped_storage().nbytes() / t.element_size() for at, t in kept.items() if at not in weights)
    del outputs  # it holds the graph, and the graph what was kept
    return values / (2 * math.prod(size))


def _words(slot: Slot) -> str:
    limits = [f"{key} {list(v)}" for key in ("levels", "paths", "nodes") if (v := getattr(slot, key)) is not None]
    options = [f"{key}={value}" for key, value in slot.options.items()]
    return slot.kind + (f" ({', '.join([*limits, *options])})" if limits or options else "")
