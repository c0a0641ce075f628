"""The networks of the modular U-Net paper (laird2019), Fig. 4 and 5: each built to 8.5 M parameters (Sec. 5.1).

The paper prints no widths. Reading: widths that give 8.5 M within 1 % for 4 input channels and one output; five levels,
batch norm after every convolution, 2x2 transposed convolutions (docs/papers/modular_unet.md, section 1 and section 3).
"""

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_PAPER = "Laird 2019, Fig. 4 and 5"
_INPUT = (4, 144, 144)  # Sec. 3 and 5.1: four modalities, centre crop
_PROTOCOL = {"loss.kind": "dice", "optimizer.lr": 1e-4}  # Sec. 5.1 and 5.2

# Reading: "reduction cells for the ConvBlock on the downsampling part as well as the DownOp": one cell is both; behind a
# stem of one convolution, the skip is a 1x1 convolution of what enters each cell (docs/papers/modular_unet.md, section 2)
NAS_REDUCTION = Architecture(
    conv=(
        Slot(
            kind="double_conv",
            levels=(0,),
            paths=("encoder",),
            options={"convs": 1, "bias": False, "activation": "none"},
        ),
        Slot(kind="nas_normal", levels=(-1,)),
        Slot(kind="identity", paths=("encoder",)),
        Slot(kind="nas_normal"),
    ),
    skip=(Slot(kind="concat", options={"project": True}),),
    down=(Slot(kind="nas_reduction"),),
)

LAIRD: dict[str, Entry] = {
    "laird/unet": Entry(
        Architecture(channels=(34, 67, 134, 268, 536)),
        _PAPER,
        "U-Net of the modular paper",
        "8.5",
        input=_INPUT,
        recipe=_PROTOCOL,
    ),
    "laird/attention_unet": Entry(
        Architecture(channels=(33, 66, 132, 265, 530), skip=(Slot(kind="attention_gate"),)),
        _PAPER,
        "U-Net with attention gates in the skip connections",
        "8.5",
        input=_INPUT,
        recipe=_PROTOCOL,
    ),
    "laird/nas_unet": Entry(
        Architecture(channels=(96, 192, 384, 768, 1530), conv=(Slot(kind="nas_normal"),)),
        _PAPER,
        "U-Net of NASNet-A normal cells",
        "8.5",
        input=_INPUT,
        recipe=_PROTOCOL,
    ),
    "laird/nas_reduction_unet": Entry(
        NAS_REDUCTION.replaced(channels=(84, 156, 312, 636, 1272)),
        _PAPER,
        "NASNet-A reduction cells on the way down, normal cells on the way up",
        "8.5",
        input=_INPUT,
        recipe=_PROTOCOL,
    ),
    "laird/efficient_unet": Entry(
        Architecture(channels=(36, 71, 143, 286, 571), conv=(Slot(kind="mbconv"),)),
        _PAPER,
        "U-Net of MBConv blocks",
        "8.5",
        input=_INPUT,
        recipe=_PROTOCOL,
    ),
}
