"""The networks of the omega-Net paper (wang2020), row by row of Table 1.

The paper prints widths (Sec. 4.1.2) and no parameter counts; those that the tests hold, for one input channel and two
maps, organ and tumour, are in docs/papers/omega_net.md, section 6. Reading: batch norm and ReLU after every convolution,
2x2 transposed convolutions with bias; the two maps are channels of their own (multilabel data), since the loss is a
binary cross-entropy.
"""

from collections.abc import Mapping
from typing import Any

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_PAPER = "Wang et al. (omega-Net), Table 1"
_INPUT = (1, 512, 512)
_WIDTHS = (64, 128, 256, 512, 1024)

# Sec. 3.1 and 4.1.2: binary cross-entropy, Adam with this weight decay, gradients accumulated. Reading: the rate and the
# number of accumulated images, which are not printed
_PROTOCOL: Mapping[str, Any] = {
    "loss.kind": "cross_entropy",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 1.5e-4,
    "planning.batch": 1,
    "training.accumulate": 8,
}

_OMEGA_NET = Architecture(
    topology="omega",
    channels=_WIDTHS,
    conv=(Slot(kind="cascade_msc", paths=("skip",)), Slot(kind="double_conv")),
    skip=(Slot(kind="mdsa", paths=("main",)), Slot(kind="concat")),
    deep_supervision=True,
)
# In the name of Table 1, MDA*-U-Net*, the star on U-Net is the cascade on the skips and the star on MDA the one in the
# attention module. Sec. 1 and 5.1 have both; the abstract, Sec. 3.3 and Fig. 1 the first alone
_MDA_STAR = _OMEGA_NET.replaced(
    skip=(Slot(kind="mdsa", paths=("main",), options={"cascade": True}), Slot(kind="concat"))
)
# Eq. 8 with lambda_out = 10 and lambda_m = 1 (Sec. 4.1.2). Reading: 10 is the weight of the final map
# (docs/papers/omega_net.md, section 4)
DUAL_SUPERVISION = {"loss.heads": {"aux0": 1, "main0": 10}}

WANG: dict[str, Entry] = {
    "wang/fcn": Entry(
        Architecture(topology="encoder", channels=_WIDTHS, head=Slot(kind="scores")),
        _PAPER,
        "FCN of the omega-Net paper; its definition is not printed",
        input=_INPUT,
        maps=2,
        recipe=_PROTOCOL,
    ),
    "wang/unet": Entry(
        Architecture(topology="unet", channels=_WIDTHS),
        _PAPER,
        "U-Net of the omega-Net paper",
        input=_INPUT,
        maps=2,
        recipe=_PROTOCOL,
    ),
    "wang/unetpp": Entry(
        Architecture(topology="unetpp", channels=_WIDTHS),
        _PAPER,
        "UNet++ of the omega-Net paper; its definition is not printed",
        input=_INPUT,
        maps=2,
        recipe=_PROTOCOL,
    ),
    "wang/attention_unet": Entry(
        Architecture(channels=_WIDTHS, skip=(Slot(kind="attention_gate"),)),
        _PAPER,
        "Attention U-Net of the omega-Net paper; its definition is not printed",
        input=_INPUT,
        maps=2,
        recipe=_PROTOCOL,
    ),
    "wang/omega_net": Entry(
        _OMEGA_NET,
        _PAPER,
        "omega-Net, cascade convolutions on the skips alone (MDA-U-Net*), as Sec. 3.3 and Fig. 1 have it",
        input=_INPUT,
        maps=2,
        recipe={**_PROTOCOL, **DUAL_SUPERVISION},
    ),
    "wang/omega_net_mda_star": Entry(
        _MDA_STAR,
        _PAPER,
        "omega-Net, cascade convolutions on the skips and in the attention (MDA*-U-Net*), as Sec. 1, 5.1 and Table 1 have it",
        input=_INPUT,
        maps=2,
        recipe={**_PROTOCOL, **DUAL_SUPERVISION},
    ),
}
