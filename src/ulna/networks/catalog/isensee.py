"""nnU-Net's residual encoder presets (isensee2024): one network, planned for 8, 24 and 40 GB.

The presets M, L and XL differ in the memory that patch and batch are planned for, and in nothing else: stages, widths, blocks
and kernels follow one rule (docs/papers/nnunet_resenc.md, section 2).
"""

from collections.abc import Mapping
from typing import Any

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_PAPER = "Isensee 2024 (nnU-Net revisited), residual encoder presets"
_INPUT = (1, 128, 128, 128)
_NORM = {"norm": "instance", "activation": "leaky_relu"}

# The encoder has 1, 3, 4, 6, 6, ... residual blocks from the finest level down; the first of a level has the stride, so it is
# the down op. The first level begins with a convolution.
RESENC = Architecture(
    topology="unet",
    conv=(
        Slot(kind="residual_stack", levels=(0,), paths=("encoder",), options={"blocks": 1, "stem": True}),
        Slot(kind="residual_stack", levels=(1,), paths=("encoder",), options={"blocks": 2}),
        Slot(kind="residual_stack", levels=(2,), paths=("encoder",), options={"blocks": 3}),
        Slot(kind="residual_stack", paths=("encoder",), options={"blocks": 5}),
        Slot(kind="double_conv", options={**_NORM, "convs": 1}),
    ),
    down=(Slot(kind="residual"),),
    deep_supervision=True,
    max_levels=6,
)


def _protocol(gigabytes: float) -> Mapping[str, Any]:
    return {"loss.heads": "halving", "planning.gpu_memory_gb": gigabytes}


L_PROTOCOL = _protocol(24)


def _row(size: str, gigabytes: float) -> Entry:
    return Entry(
        RESENC,
        _PAPER,
        f"nnU-Net with a residual encoder, preset {size}: on a GPU planned for {gigabytes:g} GB",
        input=_INPUT,
        maps=2,
        recipe=_protocol(gigabytes),
    )


ISENSEE: dict[str, Entry] = {
    "isensee/nnunet_resenc_m": _row("M", 8),
    "isensee/nnunet_resenc_l": _row("L", 24),
    "isensee/nnunet_resenc_xl": _row("XL", 40),
}
