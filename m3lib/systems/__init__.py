"""The systems, by the name of their network; a new system is one file here, one line below, one row in params.yaml."""

from importlib import import_module
from typing import TYPE_CHECKING

from m3lib.config import Variant
from m3lib.taxonomy import Taxonomy

if TYPE_CHECKING:
    from m3lib.systems.base import System

SYSTEMS = {  # network: module and class; `compatibility` reads this literal and the classes' declarations
    "classifier": "base.Classifier",
    "asen": "asen.ASEN",
    "asen_v2": "asen.ASENv2",
    "asen_pp": "asen.ASENpp",
    "modc": "modc.MODC",
    "m3_a": "m3net.M3NetA",
    "m3_c": "m3net.M3NetC",
    "m3": "m3net.M3Net",
}


def build(variant: Variant, taxonomy: Taxonomy) -> "System":
    """Initialise the network of one row from torch's global seed."""
    module, _, name = SYSTEMS[variant.network].partition(".")
    return getattr(import_module(f"m3lib.systems.{module}"), name)(variant, taxonomy)
