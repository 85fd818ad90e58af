"""MODC (ECCV 2022), reconstructed from the outline in its abstract: no equations and no code are public.

The abstract fixes: three training stages; online clustering with class prototypes; labels first from the ground truth
and then from the clusters, images first unchanged and then augmented; cluster centers that cut the attribute's space
into class-specific spaces, in training and in retrieval. We chose the rest:

- The network is ASEN_v2's. A center is the mean of the unit attribute embeddings of its class: a moving average during
  an epoch (`losses.Centers`), and exact after it, over all training images in evaluation mode. So validation, retrieval
  and pseudo-labels use exact centers.
- Stage 1 trains the instance loss (ASEN's triplet loss), stage 2 adds the cluster loss (`losses.center_loss`), stage 3
  adds a cropped and jittered copy of each image, with its labels, to every batch (train.keep_originals), and
  pseudo-labels (`losses.pseudo_labels`). params.yaml sets the length of each stage.
- Retrieval cuts the space by the nearest centers of query and candidate (scores `segment` and `soft_segment`), whose
  probabilities are a softmax of the cosines divided by model.temperature. These probabilities without the cosines
  (`posterior`) do best on the validation queries of Wardrobe.
"""

import torch
from torch import Tensor

from m3lib.config import Variant
from m3lib.systems.asen import ASENv2
from m3lib.systems.base import Outputs
from m3lib.systems.losses import Centers, center_cosines
from m3lib.taxonomy import Taxonomy


class MODC(ASENv2):
    """ASEN_v2's network with one center per class in the space of the class's attribute."""

    outputs = {"attribute", "centers"}
    losses = {"asen_triplet", "modc_cluster", "modc_pseudo", "classification", "m3_classification"}
    settings = {"attention_width", "queries", "attention_batch_norm", "temperature"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.centers = Centers(taxonomy.num_classes, self.backbone.channels, variant.loss.center_momentum)
        self.temperature = variant.model.temperature

    def class_probabilities(self, outputs: Outputs) -> Tensor:
        """Return (B, M): softmax over the classes of each attribute of cos(f_n, center_m) / temperature.

        A class without a center gets 0; an attribute without any center gets the uniform distribution.
        """
        cosines = center_cosines(outputs.attribute, self.centers.value, self.attribute_of_class)  # (B, M)
        logits = (cosines / self.temperature).masked_fill(~self.centers.seen, -1e4)
        return torch.cat([part.softmax(dim=1) for part in logits.split(self.class_counts, dim=1)], dim=1)
