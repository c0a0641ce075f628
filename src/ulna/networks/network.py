"""Network: one loop over the nodes of a wiring."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ulna.blocks import nd
from ulna.errors import UsageError
from ulna.kernels import door
from ulna.networks.heads import Head, Outputs
from ulna.networks.wiring import Wiring


class Stage(nn.Module):
    """One node: resample its source, bring the skips to its level, fuse them, convolve.

    Args:
        resample: of the source.
        skip: fuses; None where there are no skips.
        conv: of what was fused.
        bring: one for every skip, to the level of the node; None where all skips are of that level.
    """

    def __init__(self, resample: nn.Module, skip: Any, conv: nn.Module, bring: nn.ModuleList | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.bring = bring
        self.skip = skip
        self.conv = conv
        # a convolution that reads several maps where they lie spares their concatenation
        self.apart = hasattr(skip, "maps") and getattr(conv, "takes_maps", False)

    def forward(self, source: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.resample(source)
        if self.skip is None:
            return self.conv(x)
        if self.bring is not None:
            skips = [bring(skip) for bring, skip in zip(self.bring, skips, strict=True)]
        return self.conv(self.skip.maps(x, skips) if self.apart else self.skip(x, skips))


class Network(nn.Module):
    """A network of the family: a wiring whose nodes are stages, read by a head. Made by `build`.

    Args:
        wiring: the nodes, in the order of computation.
        stages: node name -> stage.
        head: what is read off the maps.
        in_channels: C.
        divisor: the product of the strides along every spatial axis; sizes are padded to a multiple of it.
    """

    def __init__(
        self, wiring: Wiring, stages: dict[str, nn.Module], head: Head, in_channels: int, divisor: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.stages = nn.ModuleDict(stages)
        self.head = head
        self.in_channels = in_channels
        self.divisor = divisor
        # keep the maps of nodes alone in training, and compute what lies between them again in the backward pass
        self.activation_checkpointing = False
        self.origin = ""  # the run folder that the weights came from, for messages

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """The map of every node: (N, C, *S) -> {node: (N, width, *S / strides)}; S divisible by `divisor`."""
        maps: dict[str, Tensor] = {}
        for node in self.wiring.nodes:
            source = image if node.source is None else maps[node.source]
            maps[node.name] = self._stage(node.name, source, [maps[name] for name in node.skips])
        return maps

    def _stage(self, name: str, source: Tensor, skips: list[Tensor]) -> Tensor:
        stage = self.stages[name]
        # torch.func cannot look into what is computed again
        if self.activation_checkpointing and self.training and torch.is_grad_enabled() and not door.transformed():
            return checkpoint(
                stage,
                source,
                skips,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), nd.Recomputing()),
                # to read the state of random numbers cannot be recorded in a CUDA graph
                preserve_rng_state=any(getattr(module, "p", 0) for module in stage.modules()),
            )
        return stage(source, skips)

    def encode(self, image: Tensor) -> tuple[dict[str, Tensor], torch.Size]:
        """The map of every node for an image of any size, and the size to which it was padded: what `head` reads.

        Raises:
            UsageError: if the image does not fit the network.
        """
        self._check(image)
        padded = pad_to_multiple(image, self.divisor)
        return self.features(padded), padded.shape[2:]

    def outputs(self, image: Tensor, points: Tensor | None = None) -> Outputs:
        """What training needs: the answer and every supervised map. Pads like `forward`, and crops every head.

        Args:
            image: (N, C, *S).
            points: (N, P, D), whole voxel indices into the image; the answer is then read there alone.

        Shape:
            logits (N, K, *S), a head at a coarser level has ceil(S / its stride); at points, (N, K, P) for all

        Raises:
            UsageError: if the image or the points do not fit the network.
        """
        maps, padded = self.encode(image)
        size = image.shape[2:]
        if points is not None:
            if points.ndim != 3 or points.shape[::2] != (image.shape[0], len(size)):
                raise UsageError(
                    f"points of shape {tuple(points.shape)}; an image of shape {tuple(image.shape)} takes (N, P, D) = "
                    f"({image.shape[0]}, P, {len(size)})"
                )
            return self.head(maps, padded, points)
        outputs = self.head(maps, padded)
        return Outputs(crop(outputs.logits, size), {n: self._crop_head(n, z, size) for n, z in outputs.heads.items()})

    def forward(self, image: Tensor) -> Tensor:
        """What users need: (N, C, *S) -> logits (N, K, *S), any spatial size; pads by replication, crops back.

        Raises:
            UsageError: if the image has another number of axes or channels than the network.
        """
        return self.outputs(image).logits

    def prune(self, head: str) -> Network:
        """The smaller network that ends at one head: shares its weights, and equals that head bit for bit at any size.

        Source: UNet++ (zhou2018), Sec. 3.2 (fast mode) and Fig. 3; reachability makes it work for every topology.

        Raises:
            UsageError: if there is no such head.
        """
        kept_head = self.head.only(head)
        wiring = self.wiring.keep(head)._replace(heads=(head,))
        stages = {node.name: self.stages[node.name] for node in wiring.nodes}
        pruned = Network(wiring, stages, kept_head, self.in_channels, self.divisor).train(self.training)
        pruned.origin = self.origin
        return pruned

    @property
    def takes_means(self) -> bool:
        """Whether the answer at a voxel depends on means over all that the network sees, as an instance norm takes them.

        Those of a patch and of a whole image differ, however far away the rest of the image is.
        """
        return any(getattr(module, "takes_means", False) for module in self.modules() if module is not self)

    def _check(self, image: Tensor) -> None:
        dims = len(self.divisor)
        if image.ndim != dims + 2 or image.shape[1] != self.in_channels:
            axes = "(N, C, H, W)" if dims == 2 else "(N, C, D, H, W)"
            raise UsageError(
                f"this {dims}D network reads {axes} with C = {self.in_channels}; got an image of shape {tuple(image.shape)}"
            )
        if 0 in image.shape:
            raise UsageError(f"the image has no pixels: shape {tuple(image.shape)}")

    def _crop_head(self, name: str, logits: Tensor, size: torch.Size) -> Tensor:
        padded = [-(-n // d) * d for n, d in zip(size, self.divisor, strict=True)]
        strides = [p // n for p, n in zip(padded, logits.shape[2:], strict=True)]
        return crop(logits, [-(-n // s) for n, s in zip(size, strides, strict=True)])


def pad_to_multiple(image: Tensor, divisor: tuple[int, ...]) -> Tensor:
    """Repeat the last pixel of every axis until its length is a multiple: (N, C, *S) -> (N, C, *S').

    An exported network pads always: whether its example needed it says nothing about the images to come.
    """
    # written so that a symbolic length is plainly a multiple: torch.export cannot solve w + (-w % 16) for it
    missing = [(n + d - 1) // d * d - n for n, d in zip(image.shape[2:], divisor, strict=True)]
    if not _of_any_size(image) and not any(missing):
        return image
    widths = [width for m in reversed(missing) for width in (0, m)]
    return nn.functional.pad(image, widths, mode="replicate")


def _of_any_size(maps: Tensor) -> bool:
    """Whether the operations of this call are written down for maps of other sizes than these: then lengths are symbols."""
    exporting = (
        torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )
    return exporting and not all(isinstance(n, int) for n in maps.shape[2:])


def crop(logits: Tensor, size: torch.Size | list[int]) -> Tensor:
    """What of a padded map lies over the image itself: (N, K, *S') -> (N, K, *S)."""
    if _of_any_size(logits):
        # a view of part of a map would fix, in the exported network, whether there is anything to cut off
        for axis, n in enumerate(size, start=2):
            logits = logits.index_select(axis, torch.arange(n, device=logits.device))
        return logits
    window: tuple[Any, ...] = (..., *(slice(n) for n in size))
    return logits[window]
