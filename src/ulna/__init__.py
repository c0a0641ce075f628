"""ulna: medical image segmentation with the whole U-Net family.

    run = ulna.train("data/nuclei", model="unetpp", out="runs/a", epochs=50)
    segment = ulna.load("runs/a")
    result = segment("scan.nii.gz")            # .mask, .probabilities, .spacing, .affine, .save(path)
    net = ulna.build("unetpp", in_channels=3)   # torch.nn.Module: (N, C, *S) -> logits (N, classes, *S)

Research use only; not a medical device.
"""

from typing import Any as _Any

from ulna.errors import DataError, PartialFailure, UlnaError, UsageError
from ulna.verbs import VERBS as _VERBS
from ulna.verbs import find as _find
from ulna.version import version as _version

__version__ = _version("ulna")

# name -> where it lives; imported on first use, because torch alone takes over a second
_PLACES = {name.replace("-", "_"): verb.place for name, verb in _VERBS.items()} | {
    "build": "ulna.networks.build:build",
    "tune_memory": "ulna.kernels.allocator:tune_memory",
    "load": "ulna.inference.loading:load",
    "Segmenter": "ulna.inference.segmenter:Segmenter",
    "Dataset": "ulna.data.layout.dataset:Dataset",
    "Recipe": "ulna.recipe:Recipe",
    "Architecture": "ulna.recipe:Architecture",
    "Slot": "ulna.recipe:Slot",
}

__all__ = ["DataError", "PartialFailure", "UlnaError", "UsageError", "__version__", *_PLACES]


def __getattr__(name: str) -> _Any:
    if name in _PLACES:
        return _find(_PLACES[name])
    raise AttributeError(f"module 'ulna' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
