"""The networks of the SDU-Net paper (carvalho2021), row by row of Table 4.

The U-Net is that of the paper's framework: bilinear upsampling, then a 1x1 convolution; UNet++ upsamples without one. The
paper prints neither the widths nor where the spatial dependency layers sit. Reading: widths that give the printed
parameters (docs/papers/sdu_net.md, section 2), and places that come nearest to the printed figures (section 3 there);
where no places reach them, the row says so. The work is printed for 96 x 96 and 96 x 128 inputs, not for the sizes
trained on.
"""

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_TABLE = "Carvalho 2021, Table 4"
_FOUR, _FIVE = (32, 64, 128, 256), (32, 64, 128, 256, 512)
_NUCLEI, _POLYPS, _LIVER = (3, 96, 96), (3, 96, 128), (3, 96, 96)

_PLAIN_UP = Slot(kind="linear", options={"align_corners": True})
_PROJECTED_UP = Slot(kind="linear", options={"align_corners": True, "project": True})

_STATE = {"state_channels": 150, "directions": ["right", "down"]}  # Table 5
_PLAIN_SDN = {**_STATE, "sdn_layers": 2}  # nuclei: no residual connections, two layers
_RESIDUAL_SDN = {**_STATE, "sdn_layers": 1, "residual": True}  # polyps and liver

_UNET_NUCLEI = Architecture(topology="unet", channels=_FOUR, up=(_PROJECTED_UP,))
_UNETPP_NUCLEI = Architecture(topology="unetpp", channels=_FOUR, up=(_PLAIN_UP,))
_UNET = Architecture(topology="unet", channels=_FIVE, up=(_PROJECTED_UP,))
_UNETPP = Architecture(topology="unetpp", channels=_FIVE, up=(_PLAIN_UP,))

_SDU_NUCLEI = _UNET_NUCLEI.replaced(
    conv=(
        Slot(kind="sdn", levels=(2,), paths=("encoder",), options=_PLAIN_SDN),
        Slot(kind="sdn", levels=(1, 2), paths=("decoder",), options=_PLAIN_SDN),
        Slot(kind="double_conv"),
    )
)
# one of four splits over encoder and decoder with the same figures: one layer at levels 1 and 3, two at level 2
_SDU = _UNET.replaced(
    conv=(
        Slot(kind="sdn", levels=(2, 3), paths=("encoder",), options=_RESIDUAL_SDN),
        Slot(kind="sdn", levels=(1, 2), paths=("decoder",), options=_RESIDUAL_SDN),
        Slot(kind="double_conv"),
    )
)
_SDNU_NUCLEI = _UNETPP_NUCLEI.replaced(
    conv=(
        Slot(kind="sdn", nodes=("x2_0", "x2_1", "x3_0"), options=_PLAIN_SDN),
        Slot(kind="double_conv"),
    )
)
_SDNU = _UNETPP.replaced(
    conv=(
        Slot(kind="sdn", nodes=("x3_0", "x3_1"), options=_RESIDUAL_SDN),
        Slot(kind="double_conv"),
    )
)

_MISPRINT = "9.76 M is taken for a misprint of 9.16 M: the printed work is that of this network"

_SETUP = {"loss.kind": "dice_ce", "optimizer.kind": "adam"}  # Sec. 3.2 and Table 5
_NUCLEI_SETUP = {**_SETUP, "optimizer.lr": 1e-3}
_VIDEO_AND_CT_SETUP = {**_SETUP, "optimizer.lr": 1e-4}


def _row(
    architecture: Architecture,
    note: str,
    published: str,
    published_gmacs: str,
    image: tuple[int, ...],
    mismatch: str = "",
) -> Entry:
    return Entry(
        architecture,
        _TABLE,
        note,
        published,
        published_gmacs,
        input=image,
        mismatch=mismatch,
        recipe=_NUCLEI_SETUP if len(architecture.channels or ()) == len(_FOUR) else _VIDEO_AND_CT_SETUP,
    )


CARVALHO: dict[str, Entry] = {
    "carvalho/unet_nuclei": _row(_UNET_NUCLEI, "U-Net for nuclei: four levels", "1.8", "1.31", _NUCLEI),
    "carvalho/unetpp_nuclei": _row(_UNETPP_NUCLEI, "UNet++ for nuclei: four levels", "2.24", "2.87", _NUCLEI),
    "carvalho/sdu_net_nuclei": _row(
        _SDU_NUCLEI,
        "SDU-Net for nuclei: plain layers, two at a node",
        "5.42",
        "2.59",
        _NUCLEI,
        "0.2 % fewer parameters and 30 % less work than printed; the paper does not say where the layers sit, and no "
        "arrangement tried has both figures",
    ),
    "carvalho/sdnu_net_nuclei": _row(
        _SDNU_NUCLEI,
        "SDNU-Net for nuclei: plain layers, two at a node",
        "6.16",
        "4.7",
        _NUCLEI,
        "12 % fewer parameters and 37 % less work than printed; the paper does not say where the layers sit, and no "
        "arrangement tried has either figure",
    ),
    "carvalho/unet_polyps": _row(_UNET, "U-Net for polyps: five levels", "7.24", "2.28", _POLYPS),
    "carvalho/unetpp_polyps": _row(_UNETPP, "UNet++ for polyps: five levels", "9.76", "6.5", _POLYPS, _MISPRINT),
    "carvalho/sdu_net_polyps": _row(
        _SDU, "SDU-Net for polyps: residual layers, one at a node", "10.36", "3.01", _POLYPS
    ),
    "carvalho/sdnu_net_polyps": _row(
        _SDNU,
        "SDNU-Net for polyps: residual layers, one at a node",
        "11",
        "8.15",
        _POLYPS,
        "18 % less work than printed; the paper does not say where the layers sit, and no arrangement tried has both "
        "figures",
    ),
    "carvalho/unet_liver": _row(_UNET, "U-Net for the liver: five levels", "7.24", "1.71", _LIVER),
    "carvalho/unetpp_liver": _row(_UNETPP, "UNet++ for the liver: five levels", "9.76", "4.87", _LIVER, _MISPRINT),
    "carvalho/sdu_net_liver": _row(
        _SDU,
        "SDU-Net for the liver: residual layers, one at a node",
        "10.36",
        "2.36",
        _LIVER,
        "2.36 is taken for a misprint of 2.26: the network is the one for polyps, whose figures agree",
    ),
    "carvalho/sdnu_net_liver": _row(
        _SDNU,
        "SDNU-Net for the liver: residual layers, one at a node",
        "11",
        "6.09",
        _LIVER,
        "18 % less work than printed; the paper does not say where the layers sit, and no arrangement tried has both "
        "figures",
    ),
}
