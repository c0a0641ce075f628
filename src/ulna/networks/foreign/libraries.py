"""The libraries whose networks are rows: MONAI and segmentation_models.pytorch. Nothing else of ulna imports them.

The networks are listed, for a stranger's recipe may name one: none of these loads a file or downloads anything, as long as
`FETCHING` options are refused.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from types import MappingProxyType
from typing import Any, NamedTuple

from ulna.errors import UsageError, unknown
from ulna.recipe.foreign import Source

FETCHING = ("pretrained", "weights", "url", "checkpoint_path", "progress", "activation")


class Row(NamedTuple):
    """One network of a library.

    Args:
        options: that are stated where its constructor has no default, of about the size of ulna's own networks.
        answer: which of several maps of the size of the image is the answer.
        divisor: that it needs, where trying does not find it.
    """

    options: Mapping[str, Any] = MappingProxyType({})
    answer: str | None = None


_FIVE = {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2]}

MONAI: dict[str, Row] = {
    "AttentionUnet": Row(_FIVE),
    "BasicUNet": Row(),
    "BasicUNetPlusPlus": Row(answer="last"),
    "DynUNet": Row(
        {
            "kernel_size": [3, 3, 3, 3, 3],
            "strides": [1, 2, 2, 2, 2],
            "upsample_kernel_size": [2, 2, 2, 2],
            "filters": [32, 64, 128, 256, 320],
        },
        answer="first",
    ),
    "FlexibleUNet": Row({"backbone": "efficientnet-b0"}),
    "HighResNet": Row(),
    "MedNeXt": Row(answer="first"),
    "SegResNet": Row(),
    "SegResNetDS": Row(answer="first"),
    "SwinUNETR": Row(),
    "UNet": Row({**_FIVE, "num_res_units": 2}),
    "VNet": Row(),
}

ONE_SIZE = ("UNETR", "SegResNetVAE")

SMP = (
    "DPT", "DeepLabV3", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer", "UPerNet", "Unet",
    "UnetPlusPlus",
)  # fmt: skip

LIBRARIES = {  # kind -> module, package, extra
    "monai": ("monai.networks.nets", "monai", "monai"),
    "smp": ("segmentation_models_pytorch", "segmentation-models-pytorch", "smp"),
}


def row_of(source: Source) -> Row:
    """What is known of a network of a library.

    Raises:
        UsageError: for a name that is not listed, with the nearest.
    """
    if source.kind == "monai":
        if source.name in ONE_SIZE:
            raise UsageError(
                f"monai:{source.name}: is made for images of one size, and ulna's differ; take SwinUNETR or SegResNet"
            )
        if source.name not in MONAI:
            raise unknown("network of MONAI", source.name, MONAI)
        return MONAI[source.name]
    if source.name not in SMP:
        raise unknown("network of segmentation_models.pytorch", source.name, SMP)
    return Row()


def maker_of(source: Source) -> Callable[..., Any]:
    """The class of a network of a library.

    Raises:
        UsageError: if the name is not listed, or the library is not there or too old to have it.
    """
    row_of(source)
    library = _library(source.kind)
    made = getattr(library, source.name, None)
    if made is None:
        raise UsageError(
            f"{source.kind}:{source.name}: {version_of(source.kind)} has no such network; take a later one"
        )
    return made


def version_of(kind: str) -> str:
    """The library with its version, such as "monai 1.6.1"."""
    package = LIBRARIES[kind][1]
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} {getattr(_library(kind), '__version__', 'of no version')}"


@cache
def _library(kind: str) -> Any:
    module, package, extra = LIBRARIES[kind]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the library itself imports
            return importlib.import_module(module)
    except Exception as error:  # a library that is there may fail in many ways while it is imported
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        why = "is not installed" if missing else f"cannot be imported ({type(error).__name__}: {str(error)[:200]})"
        raise UsageError(f"{kind}: {package} {why}; pip install 'ulna[{extra}]'") from None
