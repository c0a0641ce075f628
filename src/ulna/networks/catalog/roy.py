"""The networks of the MedNeXt paper (roy2023): sizes S, B, M and L, with kernels of 3 and 5.

All have five levels of 32 to 512 channels; the sizes differ in the expansion R and the number of blocks B at every level,
which encoder and decoder share (docs/papers/mednext.md, section 2).
"""

from collections.abc import Mapping
from typing import Any

from ulna.networks.catalog.entry import Entry
from ulna.recipe import Architecture, Slot

_PAPER = "Roy 2023 (MedNeXt), Table 1"
# of the five levels, finest first
_EXPANSIONS = {"s": (2, 2, 2, 2, 2), "b": (2, 3, 4, 4, 4), "m": (2, 3, 4, 4, 4), "l": (3, 4, 8, 8, 8)}
_BLOCKS = {"s": (2, 2, 2, 2, 2), "b": (2, 2, 2, 2, 2), "m": (3, 4, 4, 4, 4), "l": (3, 4, 8, 8, 8)}
_PRINTED = {
    ("s", 3): "5.6", ("b", 3): "10.5", ("m", 3): "17.6", ("l", 3): "61.8",
    ("s", 5): "5.9", ("b", 5): "11.0", ("m", 5): "18.3", ("l", 5): "63.0",
}  # fmt: skip
_CUT = "5.99 M, printed as 5.9: cut off, where the other seven figures are rounded"

# Sec. 3.1: AdamW of 1e-3, deep supervision with lower weights at lower resolutions, as in nnU-Net
PROTOCOL: Mapping[str, Any] = {"loss.heads": "halving", "optimizer.kind": "adamw", "optimizer.lr": 1e-3}


def mednext(size: str, kernel_size: int) -> Architecture:
    """MedNeXt of one size."""
    expansions, blocks = _EXPANSIONS[size], _BLOCKS[size]

    def slots(**more: tuple[int, ...]) -> tuple[Slot, ...]:
        """An entry a level; the last is for that level and all below."""
        options = [
            {"kernel_size": kernel_size, "expansion": expansion, **{name: at[level] for name, at in more.items()}}
            for level, expansion in enumerate(expansions)
        ]
        own = [Slot(kind="mednext", levels=(level,), options=some) for level, some in enumerate(options[:-1])]
        return (*own, Slot(kind="mednext", options=options[-1]))

    return Architecture(
        topology="unet",
        max_channels=512,
        conv=slots(blocks=blocks),
        skip=(Slot(kind="add"),),
        up=slots(),
        down=slots(),
        deep_supervision=True,
    )


def _row(size: str, kernel_size: int) -> Entry:
    return Entry(
        mednext(size, kernel_size),
        _PAPER,
        f"MedNeXt-{size.upper()} with kernels of {kernel_size}",
        _PRINTED[size, kernel_size],
        input=(1, 128, 128, 128),
        maps=14,  # Reading: those of its multi-organ data, 13 organs and background; for two, M has 17.5 M
        mismatch=_CUT if (size, kernel_size) == ("s", 5) else "",
        recipe=PROTOCOL,
    )


ROY: dict[str, Entry] = {
    f"roy/mednext_{size}{'' if kernel_size == 3 else '_k5'}": _row(size, kernel_size)
    for kernel_size in (3, 5)
    for size in _EXPANSIONS
}
