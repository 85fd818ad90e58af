"""The registry: a network's name to its class. A new system is one class, one line here and one in abilities.py."""

from m3lib.compatibility import check_variant
from m3lib.config import Variant
from m3lib.systems.asen import ASEN, ASENpp, ASENv2
from m3lib.systems.base import Classifier, System
from m3lib.systems.m3net import M3Net, M3NetA, M3NetC
from m3lib.systems.modc import MODC
from m3lib.taxonomy import Taxonomy

NETWORKS: dict[str, type[System]] = {
    "classifier": Classifier,
    "asen": ASEN,
    "asen_v2": ASENv2,
    "asen_pp": ASENpp,
    "modc": MODC,
    "m3_a": M3NetA,
    "m3_c": M3NetC,
    "m3": M3Net,
}


def build(variant: Variant, taxonomy: Taxonomy) -> System:
    """The network of one row of the comparison, freshly initialised from torch's global seed."""
    check_variant(variant)
    return NETWORKS[variant.network](variant, taxonomy)
