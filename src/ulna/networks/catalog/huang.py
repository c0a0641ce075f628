"""The networks of the UNet 3+ paper (huang2020): full-scale skips, with and without deep supervision.

The classification-guided module and the MS-SSIM part of the loss are not built (docs/papers/unet3p.md, section 3).
"""

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_PAPER = "Huang 2020 (UNet 3+), Table 1"
_INPUT = (3, 320, 320)

UNET3P = Architecture(
    topology="unet3p",
    # Sec. 2.1: the maps of a decoder node, side by side, pass one convolution of as many filters
    conv=(
        Slot(kind="double_conv", paths=("encoder",)),
        Slot(kind="double_conv", options={"convs": 1, "keep_width": True}),
    ),
    skip=(Slot(kind="full_scale"),),
    up=(Slot(kind="linear"),),
    head=Slot(kind="dense", options={"kernel_size": 3, "upsample": True}),  # Sec. 2.2
)

HUANG: dict[str, Entry] = {
    "huang/unet3p": Entry(
        UNET3P.replaced(channels=(64, 128, 256, 512, 1024)),
        _PAPER,
        "UNet 3+ without deep supervision: one head",
        "26.97",
        input=_INPUT,
    ),
    "huang/unet3p_ds": Entry(
        UNET3P.replaced(channels=(64, 128, 256, 512, 1024), deep_supervision=True),
        _PAPER,
        "UNet 3+ with deep supervision: a head at each of five levels, without classification-guided module",
        input=_INPUT,
    ),
}
