"""Networks of others: of MONAI and segmentation_models.pytorch, and classes in files of one's own, as `Network`.

`libraries.py` is the one module that imports these libraries, by name; `code.py` the one that runs a file.
"""

from ulna.networks.foreign.code import (
    CODE_FILE,
    allow_flag,
    check_named,
    file_of,
    is_permitted,
    permit,
    permit_named,
    permit_stored,
)
from ulna.networks.foreign.encoder import load_encoder
from ulna.networks.foreign.making import check_options, foreign_network, named_foreign, note_version, sized, tried
from ulna.networks.foreign.network import ForeignNetwork
from ulna.networks.foreign.scaling import match_foreign

__all__ = [
    "CODE_FILE",
    "ForeignNetwork",
    "allow_flag",
    "check_named",
    "check_options",
    "file_of",
    "foreign_network",
    "is_permitted",
    "load_encoder",
    "match_foreign",
    "named_foreign",
    "note_version",
    "permit",
    "permit_named",
    "permit_stored",
    "sized",
    "tried",
]
