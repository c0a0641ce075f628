"""The deep residual U-Net (zhang2018): pre-activated residual units in place of convolutions, strides in place of pooling."""

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot


def residual_unet(shortcut: str) -> Architecture:
    """With shortcuts of one kind; four levels, of which the paper counts seven, up and down."""
    options = {"shortcut": shortcut}
    return Architecture(
        topology="unet",
        conv=(
            Slot(kind="preactivated", levels=(0,), paths=("encoder",), options={**options, "first": True}),
            Slot(kind="identity", paths=("encoder",)),  # the down op is the unit
            Slot(kind="preactivated", options=options),
        ),
        up=(Slot(kind="linear"),),
        down=(Slot(kind="preactivated", options=options),),
    )


ZHANG: dict[str, Entry] = {
    "zhang/residual_unet": Entry(
        residual_unet("identity").replaced(channels=(64, 128, 256, 512)),
        "Zhang 2018 (deep residual U-Net), Table I",
        "U-Net of pre-activated residual units, shortcuts without parameters",
        "7.8",
        input=(3, 224, 224),
    ),
}
