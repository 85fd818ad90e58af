"""The seven systems of M3-Net's tables, two plain classifiers, one of our own, and all losses, in reading order.

base        what all networks share: their outputs, the class probabilities, and the two plain classifiers
backbone    a timm model up to its stride-16 features, of which the first blocks may be frozen
imagenet    ImageNet weights from an installed package
attention   spatial attention and channel attention by a query, one query per attribute or class
asen        ASEN and ASEN_v2: attention by attribute
asen_pp     ASEN++: a second branch reads the attended region at a higher resolution
modc        MODC: ASEN_v2 with class centers that cut each attribute's space
m3net       M3-Net and its two halves: class-specific embeddings
duet        Duet, our own: classes and contrast in one space, two views
losses      every loss with its equation, sampling of triplets, class centers
objective   the weighted sum of losses that a training step minimises

Letters, in every module that computes with tensors:

B  images of a batch            I  images of a data set         N  attributes
M  classes, M_n of attribute n  K  selected classes             P  positions of the feature map
C  backbone channels            D  attribute embedding size     d  class-specific embedding size
h  attention width (h_n: the pooled, gated features of attribute n)
A  anchors                      Q  queries                      H, W  height and width of images
"""

from importlib import import_module

from m3lib.config import Variant
from m3lib.systems.base import System
from m3lib.taxonomy import Taxonomy

SYSTEMS = {  # a network's name in params.yaml: its module and class in this folder
    "frozen": "base.Frozen",
    "classifier": "base.Classifier",
    "asen": "asen.ASEN",
    "asen_v2": "asen.ASENv2",
    "asen_pp": "asen_pp.ASENpp",
    "modc": "modc.MODC",
    "m3_a": "m3net.M3NetA",
    "m3_c": "m3net.M3NetC",
    "m3": "m3net.M3Net",
    "duet": "duet.Duet",
}


def module_of(network: str) -> str:
    """Return the dotted name of the module that defines a network."""
    return f"m3lib.systems.{SYSTEMS[network].split('.')[0]}"


def build(variant: Variant, taxonomy: Taxonomy) -> System:
    """Return a variant's network, initialised from torch's global seed."""
    name = SYSTEMS[variant.network].split(".")[1]
    return getattr(import_module(module_of(variant.network)), name)(variant, taxonomy)
