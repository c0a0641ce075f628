"""The networks of the Implicit U-Net paper (marimont2022), Table 1.

The paper prints no parameter counts; those that the tests hold, in 3D for one input channel and two maps, are in
docs/papers/implicit_unet.md, section 4.
"""

from collections.abc import Mapping
from typing import Any

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_PAPER = "Naval Marimont 2022, Table 1"
_INPUT = (1, 160, 160, 96)
_NORM = {"norm": "instance", "activation": "leaky_relu"}

# Sec. 2 and 3.1. Readings: the Dice of the loss is pooled over the points of a batch; the weight decay, which is not printed,
# is torch's own for AdamW, for without one AdamW is Adam
_PROTOCOL: Mapping[str, Any] = {
    "loss.kind": "dice_ce",
    "loss.options": {"reduction": "batch"},
    "optimizer.kind": "adamw",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.01,
    "inference.overlap": 0.3,
    "inference.refine": "once",
}

# Sec. 2: "2 blocks of 2 convolutions followed by 2 blocks of 4", the strided one included. Reading: these follow a stem of
# two at full resolution, so that the deepest vector covers the 16 voxels that Sec. 2 names; the other reading, four levels
# in all, is architecture.channels=[32, 64, 128, 256], whose deepest vector covers 8 (docs/papers/implicit_unet.md, section 1)
IMPLICIT_UNET = Architecture(
    topology="encoder",
    conv=(
        Slot(kind="double_conv", levels=(0,), options=_NORM),
        Slot(kind="double_conv", levels=(-2, -1), options={**_NORM, "convs": 3}),
        Slot(kind="double_conv", options={**_NORM, "convs": 1}),
    ),
    down=(Slot(kind="strided", options=_NORM),),
    head=Slot(kind="points"),
)
# sampled points of one patch may hold none of a class, so the Dice of the loss is pooled over those of a batch
POINTWISE: Mapping[str, Any] = {"loss.options": {"reduction": "batch"}}

MARIMONT: dict[str, Entry] = {
    "marimont/implicit_unet": Entry(
        IMPLICIT_UNET.replaced(channels=(32, 64, 128, 256, 320)),
        _PAPER,
        "Implicit U-Net: an encoder whose levels are read at points by a decoder of eight layers; work at 30,000 points",
        input=_INPUT,
        maps=2,
        recipe={**_PROTOCOL, "points.count": 30_000},
    ),
    "marimont/unet": Entry(
        Architecture(
            topology="unet",
            channels=(32, 64, 128, 256, 320, 320),
            conv=(
                Slot(kind="double_conv", levels=(0,), options=_NORM),
                Slot(kind="double_conv", paths=("encoder",), options={**_NORM, "convs": 1}),
                Slot(kind="double_conv", options=_NORM),
            ),
            down=(Slot(kind="strided", options=_NORM),),
            up=(Slot(kind="transpose", options={"bias": False}),),
            head=Slot(kind="dense", options={"bias": False}),
            deep_supervision=True,
        ),
        _PAPER,
        "its U-Net, that of nnU-Net for this patch: six levels, deep supervision",
        input=_INPUT,
        maps=2,
        recipe={**_PROTOCOL, "loss.heads": "halving"},
    ),
}
