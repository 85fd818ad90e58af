"""A system of our own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3lib.config import Variant
from m3lib.systems.attention import AttributeAttention, ClassHeads, unit
from m3lib.systems.base import Outputs, System
from m3lib.systems.m3net import repeat_per_class
from m3lib.taxonomy import Taxonomy


class PartWhole(System):
    """Class evidence from the attended part, the whole image and the best place; a small attribute embedding."""

    outputs = {"attribute", "logits"}
    losses = {"asen_triplet", "classification", "m3_classification", "evidence"}
    settings = {"attention_width", "queries", "attention_batch_norm", "class_embedding", "whole", "place"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, M, model = self.backbone.channels, taxonomy.num_classes, variant.model
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, model)
        self.heads = ClassHeads(C, self.class_counts)
        self.whole = nn.Parameter(torch.zeros(M, C)) if model.whole else None
        self.place = nn.Parameter(torch.zeros(M, C)) if model.place else None
        self.output = nn.Linear(C, model.class_embedding)

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        alpha, _, h = self.attributes(X)  # (B, N, P), _, (B, N, C)
        logits = self.heads(h)  # (B, M)
        if self.whole is not None:
            logits = logits + F.linear(X.mean(dim=1), self.whole)
        if self.place is not None:
            evidence = F.linear(X, self.place).mT  # (B, M, P)
            prior = repeat_per_class(torch.log1p(X.shape[1] * alpha), self.class_counts)  # (B, M, P)
            logits = logits + ((evidence.float() + prior).softmax(dim=2) * evidence).sum(dim=2)
        return Outputs(unit(self.output(h)), logits=logits, attribute_maps=alpha)
