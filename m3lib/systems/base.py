"""What all systems share: their outputs, the backbone, the taxonomy's shape, and the reading of class logits.

Every network takes images (B, 3, H, W) and returns `Outputs`; what a network does not give is None. One that gives
class-specific embeddings can be asked for some of them: the losses of a batch compare images in the spaces of the
classes that it carries, a fraction of a thousand. Letters: B images, C channels, P = positions of the stride-16 feature
map, N attributes, M classes, K classes wanted, h attention width, D and d the sizes of attribute and class-specific
embeddings.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3lib.config import Loss, Variant
from m3lib.systems.attention import ClassHeads
from m3lib.systems.backbone import Backbone
from m3lib.systems.losses import positive_weights
from m3lib.taxonomy import Taxonomy


class Outputs(NamedTuple):
    attribute: Tensor | None = None  # (B, N, D) unit rows: f_n
    local: Tensor | None = None  # (B, N, D) unit rows: ASEN++'s local branch
    logits: Tensor | None = None  # (B, M) of the class probabilities x_m
    classes: Tensor | None = None  # (B, M, d) unit rows: phi_m; (B, K, d) of the classes wanted
    attribute_maps: Tensor | None = None  # (B, N, P) attention, sums to 1
    class_maps: Tensor | None = None  # (B, M, P) attention, sums to 1
    wanted: Tensor | None = None  # (K,) int64, rising: the classes that `classes` is of; None: all M


class System(nn.Module):
    """The base of every network; `variant` is its row of params.yaml."""

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__()
        model = variant.model
        self.backbone = Backbone(
            model.backbone, model.backbone_options, model.pretrained, model.weights, model.input_scale
        )
        self.sizes = [len(attribute.classes) for attribute in taxonomy.attributes]
        self.register_buffer("attribute_of_class", torch.from_numpy(taxonomy.attribute_of_class), persistent=False)
        self.register_buffer("positive_weight", torch.ones(taxonomy.num_classes))
        self.register_buffer("multi", torch.tensor([a.multi for a in taxonomy.attributes]), persistent=False)

    def class_heads(self, variant: Variant, dim: int) -> ClassHeads | None:
        """Logits on attribute embeddings where Loss 1 is switched on; the published ASEN family has none."""
        return ClassHeads(dim, self.sizes) if any(stage.loss.m3_classification for stage in variant.stages) else None

    def enter_stage(self, loss: Loss) -> None:
        """Called before each epoch with its stage's losses; a system with parts that join later switches them here."""

    def local_parameters(self) -> list[nn.Parameter]:
        """The parameters that a stage's `global_lr` spares."""
        return []

    def stored_attribute(self, outputs: Outputs) -> Tensor | None:
        """(B, N, D) unit rows: the attribute embedding that retrieval uses."""
        return outputs.attribute

    def count_classes(self, labels: Tensor, power: float) -> None:
        """Set w_p from the training labels (I, M)."""
        self.positive_weight.copy_(positive_weights(labels, self.attribute_of_class, power))

    def split(self, wanted: Tensor | None) -> list[int]:
        """How many of the wanted classes (K,) each attribute has."""
        if wanted is None:
            return self.sizes
        ends = torch.tensor(self.sizes).cumsum(0)
        return torch.bucketize(wanted.cpu(), ends, right=True).bincount(minlength=len(ends)).tolist()

    def posterior(self, outputs: Outputs) -> Tensor | None:
        """(B, M) class probabilities, with the shift that w_p gives to the optimum of Loss 1 taken back.

        The minimum of the weighted loss is at logit(x) = logit(p) + log w_p. An attribute with one class per image
        gets a softmax over its classes, the others a sigmoid each.
        """
        if outputs.logits is None:
            return None
        logits = outputs.logits.float() - self.positive_weight.log()
        parts = logits.split(self.sizes, dim=1)
        return torch.cat(
            [part.sigmoid() if m else part.softmax(1) for part, m in zip(parts, self.multi, strict=True)], 1
        )


class Classifier(System):
    """The plain row: pooled features and one linear layer for all classes."""

    outputs = {"logits"}
    losses = {"m3_classification"}
    settings = set()

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.head = nn.Linear(self.backbone.channels, taxonomy.num_classes)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(logits=self.head(self.backbone(images).mean(dim=1)))
