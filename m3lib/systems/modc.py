"""MODC (ECCV 2022), a reconstruction from the outline in its abstract: neither its equations nor code are public.

What the abstract says: three training stages; online clustering with class prototypes; labels first from the ground
truth and then from the clusters, images first as they are and then augmented; the attribute's space cut into
class-specific spaces by the cluster centers, in training and in retrieval. Everything else is decided here:

- the network is ASEN_v2's, and a center is a moving average of the unit attribute embeddings of its class
  (`losses.Centers`), exact again at the start of every epoch that uses centers;
- stage 1 trains the instance loss (the triplet of ASEN), stage 2 adds the cluster loss (`losses.center_loss`), stage 3
  adds augmented views and pseudo-labels (`losses.pseudo_labels`); params.yaml says how long each is;
- retrieval cuts the space by the nearest center of query and candidate (scores `segment` and `soft_segment`), whose
  probabilities are a softmax of the cosines over model.temperature.
"""

import torch
from torch import Tensor

from m3lib.config import Variant
from m3lib.systems.asen import ASENv2
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Centers, center_cosines
from m3lib.taxonomy import Taxonomy


class MODC(ASENv2):
    """ASEN_v2's network with a center per class in its attribute's space; letters as in system.py."""

    outputs = {"attribute", "centers"}
    losses = {"asen_triplet", "modc_cluster", "modc_pseudo", "m3_classification"}
    settings = {"attention_width", "queries", "attention_batch_norm", "temperature"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.centers = Centers(taxonomy.num_classes, self.backbone.channels, variant.loss.center_momentum)
        self.temperature = variant.model.temperature

    def posterior(self, outputs: Outputs) -> Tensor:
        """(B, M) softmax over the classes of each attribute of cos(f_n, center_m) / temperature.

        A class without a center gets 0; before any center is known, all classes are alike.
        """
        cosines = center_cosines(outputs.attribute, self.centers.value, self.attribute_of_class)  # (B, M)
        logits = (cosines / self.temperature).masked_fill(~self.centers.seen, -1e4)
        return torch.cat([part.softmax(dim=1) for part in logits.split(self.sizes, dim=1)], dim=1)
