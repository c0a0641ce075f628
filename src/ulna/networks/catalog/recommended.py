"""The recommended builds, under short names."""

from ulna.networks.catalog.entry import Entry
from ulna.networks.catalog.huang import UNET3P
from ulna.networks.catalog.isensee import L_PROTOCOL, RESENC
from ulna.networks.catalog.laird import NAS_REDUCTION
from ulna.networks.catalog.marimont import IMPLICIT_UNET, POINTWISE
from ulna.networks.catalog.roy import PROTOCOL as MEDNEXT_PROTOCOL
from ulna.networks.catalog.roy import mednext
from ulna.networks.catalog.wang import DUAL_SUPERVISION
from ulna.networks.catalog.zhang import residual_unet
from ulna.recipe import Architecture, Slot

# levels 2 and 3 of 5, as deep as the layers are in the rows of the paper for video and CT; a narrower state is faster
_SDN = Slot(kind="sdn", levels=(-3, -2), options={"residual": True})
_NNUNET = {"norm": "instance", "activation": "leaky_relu"}

RECOMMENDED: dict[str, Entry] = {
    "fcn": Entry(
        Architecture(topology="encoder", head=Slot(kind="scores")),
        "Long 2015 (FCN-8s)",
        "encoder of U-Net, scores of its three deepest maps upsampled and summed",
    ),
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
    "attention_unet": Entry(
        Architecture(skip=(Slot(kind="attention_gate"),)),
        "Oktay 2018; Laird 2019, Fig. 4",
        "U-Net whose skip connections pass attention gates",
    ),
    # a cell of F channels has F / 6 or F / 4 filters, so these start wider to have the parameters of U-Net
    "nas_unet": Entry(
        Architecture(base_channels=96, max_channels=1536, conv=(Slot(kind="nas_normal"),)),
        "Zoph 2018; Laird 2019, Fig. 4",
        "U-Net of NASNet-A normal cells",
    ),
    "nas_reduction_unet": Entry(
        NAS_REDUCTION.replaced(base_channels=72, max_channels=1152),
        "Zoph 2018; Laird 2019, Fig. 4",
        "NASNet-A reduction cells on the way down, normal cells on the way up",
    ),
    "efficient_unet": Entry(
        Architecture(conv=(Slot(kind="mbconv"),)),
        "Tan 2019; Laird 2019, Fig. 4",
        "U-Net of MBConv blocks with squeeze-excitation",
    ),
    "omega_net": Entry(
        Architecture(
            topology="omega",
            # as printed they have none; the attention then gives every channel the largest ones, and it learns slowly
            conv=(
                Slot(kind="cascade_msc", paths=("skip",), options={"norm": "batch", "activation": "relu"}),
                Slot(kind="double_conv"),
            ),
            skip=(Slot(kind="mdsa", paths=("main",)), Slot(kind="concat")),
            deep_supervision=True,
        ),
        "Wang et al. (omega-Net), Fig. 1",
        "omega-Net with batch norm in its cascade convolutions too, 32 to 512 channels",
        recipe=DUAL_SUPERVISION,
    ),
    "sdu_net": Entry(
        Architecture(
            topology="unet",
            conv=(_SDN, Slot(kind="double_conv")),
            up=(Slot(kind="linear", options={"project": True}),),
        ),
        "Carvalho 2021, Sec. 2",
        "U-Net with residual spatial dependency layers at its two levels above the deepest",
    ),
    "sdnu_net": Entry(
        Architecture(
            topology="unetpp",
            conv=(_SDN, Slot(kind="double_conv")),
            up=(Slot(kind="linear"),),
            deep_supervision=True,
            readout="mean",
        ),
        "Carvalho 2021, Sec. 2",
        "UNet++ with residual spatial dependency layers at its two levels above the deepest, deep supervision",
    ),
    # 512 units at 30,000 points do more work than the encoder at 96 x 96 x 64, and leave little of what the paper saves:
    # half the width has a third of the work at a point, and a share of the voxels keeps the proportion in any patch; both
    # as accurate in equal time (docs/studies/implicit). The encoder has five levels of that of `nnunet`: four convolutions
    # at each of the two deepest levels were half of all parameters, and a training without them was no less accurate
    # (docs/measured.md)
    "implicit_unet": Entry(
        IMPLICIT_UNET.replaced(
            conv=(
                Slot(kind="double_conv", levels=(0,), options=_NNUNET),
                Slot(kind="double_conv", options={**_NNUNET, "convs": 1}),
            ),
            head=Slot(kind="points", options={"width": 256}),
        ),
        "Naval Marimont 2022, Fig. 2",
        "five levels of the encoder of nnU-Net, which are read by a decoder of 256 units, in training at one voxel of 32",
        recipe={**POINTWISE, "points.fraction": 1 / 32},
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
    "nnunet_resenc": Entry(
        RESENC,
        "Isensee 2024 (nnU-Net revisited), preset ResEnc L",
        "nnU-Net with a residual encoder; on a GPU planned for 24 GB, the preset that its authors recommend",
        input=(1, 128, 128, 128),
        maps=2,
        recipe=L_PROTOCOL,
    ),
    "mednext": Entry(
        mednext("s", 3),
        "Roy 2023 (MedNeXt), size S",
        "MedNeXt-S: inverted bottlenecks behind depthwise convolutions of 3, up and down too",
        recipe=MEDNEXT_PROTOCOL,
    ),
    "unet3p": Entry(
        UNET3P.replaced(deep_supervision=True),
        "Huang 2020 (UNet 3+)",
        "UNet 3+ of half its widths, 32 to 512 channels: full-scale skips, deep supervision at every level",
    ),
    "residual_unet": Entry(
        residual_unet("project"),
        "Zhang 2018 (deep residual U-Net)",
        "U-Net of pre-activated residual units, 32 to 512 channels, projections on the shortcuts",
    ),
}
