"""The named networks: recommended builds under short names, exact rows of the papers' tables as `paper/row`."""

from ulna.networks.catalog.carvalho import CARVALHO
from ulna.networks.catalog.entry import Entry
from ulna.networks.catalog.huang import HUANG
from ulna.networks.catalog.isensee import ISENSEE
from ulna.networks.catalog.laird import LAIRD
from ulna.networks.catalog.marimont import MARIMONT
from ulna.networks.catalog.recommended import RECOMMENDED
from ulna.networks.catalog.roy import ROY
from ulna.networks.catalog.wang import WANG
from ulna.networks.catalog.zhang import ZHANG
from ulna.networks.catalog.zhou import ZHOU

NAMED: dict[str, Entry] = {
    **RECOMMENDED,
    **ZHOU,
    **CARVALHO,
    **LAIRD,
    **WANG,
    **MARIMONT,
    **ISENSEE,
    **ROY,
    **HUANG,
    **ZHANG,
}

__all__ = ["NAMED", "Entry"]
