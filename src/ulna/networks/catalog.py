"""The named networks: recommended builds under short names, exact rows of the papers' tables as `paper/row`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ulna.recipe import Architecture, Slot


@dataclass(frozen=True)
class Entry:
    """One named network.

    Args:
        architecture: the network as data.
        paper: who published it, and where in the paper.
        note: what this build is, in one line.
        published: the number of parameters that the paper prints, in millions, as printed.
        recipe: what else the network needs to train as meant, as changes of the default recipe (path -> value).
    """

    architecture: Architecture
    paper: str
    note: str
    published: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)


# UNet++ Sec. 4 and the authors' code: two 3x3 convolutions with bias and ReLU, no normalisation (specs, UNet++ 1)
_ZHOU = Slot(kind="double_conv", options={"norm": "none"})
_ZHOU_WIDTHS = (32, 64, 128, 256, 512)
_NNUNET = {"norm": "instance", "activation": "leaky_relu"}

NAMED: dict[str, Entry] = {
    "unet": Entry(
        Architecture(topology="unet"),
        "Ronneberger 2015; widths of Zhou 2018, Table 2",
        "U-Net with batch norm, 32 to 512 channels",
    ),
    "wide_unet": Entry(
        Architecture(topology="unet", base_channels=35, max_channels=560),
        "Zhou 2018, Table 2",
        "U-Net with batch norm, 35 to 560 channels",
    ),
    "unetpp": Entry(
        Architecture(topology="unetpp", deep_supervision=True, readout="mean"),
        "Zhou 2018, Eq. 1 and Sec. 3.2",
        "UNet++ with batch norm, deep supervision, accurate mode; prune for the fast modes",
    ),
    "nnunet": Entry(
        Architecture(
            topology="unet",
            conv=(
                Slot(kind="double_conv", levels=(0,), options=_NNUNET),
                Slot(kind="double_conv", paths=("encoder",), options={**_NNUNET, "convs": 1}),
                Slot(kind="double_conv", options=_NNUNET),
            ),
            down=(Slot(kind="strided", options=_NNUNET),),
            deep_supervision=True,
            max_levels=6,
        ),
        "Isensee 2021 (nnU-Net), the plain network of its v2",
        "U-Net with instance norm, leaky ReLU, strided convolutions, deep supervision at every level",
        recipe={"loss.heads": "halving"},
    ),
    "zhou/unet": Entry(
        Architecture(topology="unet", channels=_ZHOU_WIDTHS, conv=(_ZHOU,)),
        "Zhou 2018, Table 2 and 3",
        "U-Net of the UNet++ paper",
        "7.76",
    ),
    "zhou/wide_unet": Entry(
        Architecture(
            topology="unet",
            channels=(35, 70, 140, 280, 560),
            conv=(_ZHOU,),
            # Reading: the printed 9.13 M holds only if the transposed convolutions keep 32 * 2^i outputs
            up=(Slot(kind="transpose", options={"ratio": 32 / 35}),),
        ),
        "Zhou 2018, Table 2 and 3",
        "wide U-Net of the UNet++ paper",
        "9.13",
    ),
    "zhou/unetpp": Entry(
        Architecture(topology="unetpp", channels=_ZHOU_WIDTHS, conv=(_ZHOU,)),
        "Zhou 2018, Table 3",
        "UNet++ without deep supervision: one head",
        "9.04",
    ),
    "zhou/unetpp_ds": Entry(
        Architecture(topology="unetpp", channels=_ZHOU_WIDTHS, conv=(_ZHOU,), deep_supervision=True, readout="mean"),
        "Zhou 2018, Table 3",
        "UNet++ with deep supervision: four heads, their mean",
        "9.04",
        recipe={"loss.kind": "unetpp", "optimizer.lr": 3e-4},
    ),
}
