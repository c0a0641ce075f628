"""The networks of the UNet++ paper (zhou2018), row by row."""

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

# Sec. 4 and the authors' code: two 3x3 convolutions with bias and ReLU, no norm (docs/papers/unetpp.md, section 1)
_ZHOU = Slot(kind="double_conv", options={"norm": "none"})
# Sec. 4: the four networks of Table 3 share one training; with deep supervision the loss is that of four heads, else of one
_PROTOCOL = {"loss.kind": "unetpp", "optimizer.lr": 3e-4}
_ZHOU_WIDTHS = (32, 64, 128, 256, 512)

ZHOU: dict[str, Entry] = {
    "zhou/unet": Entry(
        Architecture(topology="unet", channels=_ZHOU_WIDTHS, conv=(_ZHOU,)),
        "Zhou 2018, Table 2 and 3",
        "U-Net of the UNet++ paper",
        "7.76",
        recipe=_PROTOCOL,
    ),
    "zhou/wide_unet": Entry(
        Architecture(
            topology="unet",
            channels=(35, 70, 140, 280, 560),
            conv=(_ZHOU,),
            # Reading: the printed 9.13 M holds only if the transposed convolutions keep 32 * 2^i outputs
            # (docs/papers/unetpp.md, section 2)
            up=(Slot(kind="transpose", options={"ratio": 32 / 35}),),
        ),
        "Zhou 2018, Table 2 and 3",
        "wide U-Net of the UNet++ paper",
        "9.13",
        recipe=_PROTOCOL,
    ),
    "zhou/unetpp": Entry(
        Architecture(topology="unetpp", channels=_ZHOU_WIDTHS, conv=(_ZHOU,)),
        "Zhou 2018, Table 3",
        "UNet++ without deep supervision: one head",
        "9.04",
        recipe=_PROTOCOL,
    ),
    "zhou/unetpp_ds": Entry(
        Architecture(topology="unetpp", channels=_ZHOU_WIDTHS, conv=(_ZHOU,), deep_supervision=True, readout="mean"),
        "Zhou 2018, Table 3",
        "UNet++ with deep supervision: four heads, their mean",
        "9.04",
        recipe=_PROTOCOL,
    ),
}
