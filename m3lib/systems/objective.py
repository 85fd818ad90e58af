"""What a step minimises: the losses of a batch, by the weights of its stage."""

import torch
from torch import Tensor

from m3lib.config import Loss
from m3lib.systems import losses
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Batch


def total_loss(
    outputs: Outputs, batch: Batch, system: System, loss: Loss, generator: torch.Generator, pseudo: Tensor | None = None
) -> dict[str, Tensor]:
    """The weighted losses of one batch, by name; their sum is what is trained.

    outputs: where they are of some classes alone, the batch's images carry no others.
    pseudo: (B, M) bool, classes of the batch's images that were guessed from the centers.
    """
    labels, anchors, own = batch.labels, batch.anchors, system.attribute_of_class
    parts = {}
    if loss.m3_classification:  # Loss 1 (poster)
        parts["m3_classification"] = losses.classification_loss(
            outputs.logits.float(), labels, system.positive_weight, own
        )
    if loss.asen_triplet:  # ASEN, eq. of T; MODC's instance loss
        parts["asen_triplet"] = attribute_loss(outputs.attribute, anchors, own, loss, generator)
    if loss.asen_pp_local:  # ASEN++, local branch
        parts["asen_pp_local"] = attribute_loss(outputs.local, anchors, own, loss, generator)
    if loss.asen_pp_align:
        known = losses.known_attributes(labels, own)
        parts["asen_pp_align"] = losses.align_loss(outputs.attribute, outputs.local, known)
    if loss.modc_cluster:  # MODC's cluster loss
        cosines = losses.center_cosines(outputs.attribute, system.centers.value, own)
        parts["modc_cluster"] = losses.center_loss(cosines, labels, system.centers.seen, own, loss.margin)
    if loss.modc_pseudo and pseudo is not None:
        parts["modc_pseudo"] = pseudo_loss(outputs.attribute, labels, pseudo, system, loss, generator)
    if loss.m3_instance or loss.m3_cluster:
        space = anchors.class_id if outputs.wanted is None else torch.searchsorted(outputs.wanted, anchors.class_id)
        drawn = losses.draw_triplets(outputs.classes, space, anchors, loss.hardness, generator)
        if loss.m3_instance:  # Loss 2 (poster): anchor, positive and negative in the space of one class
            parts["m3_instance"] = losses.triplet_loss(drawn.positive, drawn.negative, loss.margin)
        if loss.m3_cluster:  # Loss 3 (poster): the positive is the class center
            parts["m3_cluster"] = cluster_loss(drawn, anchors.class_id, system.centers, loss.margin)
    return {name: getattr(loss, name) * value for name, value in parts.items()}


def attribute_loss(
    embedding: Tensor, anchors: losses.Anchors, own: Tensor, loss: Loss, generator: torch.Generator
) -> Tensor:
    """The triplet loss in the spaces of the anchors' attributes; embedding: (B, N, D), unit."""
    drawn = losses.draw_triplets(embedding, own[anchors.class_id], anchors, loss.hardness, generator)
    return losses.triplet_loss(drawn.positive, drawn.negative, loss.margin)


def pseudo_loss(
    embedding: Tensor, labels: Tensor, pseudo: Tensor, system: System, loss: Loss, generator: torch.Generator
) -> Tensor:
    """MODC's instance and cluster losses for the guessed classes, whose positives and negatives may be labelled."""
    own, parts = system.attribute_of_class, []
    if loss.asen_triplet:
        found = losses.find_anchors(labels | pseudo, own)
        guessed = pseudo[found.image, found.class_id]
        found = losses.Anchors(*(part[guessed] for part in found))
        parts.append(loss.asen_triplet * attribute_loss(embedding, found, own, loss, generator))
    if loss.modc_cluster:
        cosines = losses.center_cosines(embedding, system.centers.value, own)
        parts.append(loss.modc_cluster * losses.center_loss(cosines, pseudo, system.centers.seen, own, loss.margin))
    return sum(parts)


def cluster_loss(drawn: losses.Triplets, class_id: Tensor, centers: losses.Centers, margin: float) -> Tensor:
    """Loss 3: max(0, margin - cos(phi_m, center_m) + cos(phi_m, phi_m of the negative)), over centers seen so far."""
    to_center = (drawn.anchor * centers.value[class_id]).sum(dim=1)  # (A,)
    seen = centers.seen[class_id]
    return losses.triplet_loss(to_center[seen], drawn.negative[seen], margin)


@torch.no_grad()
def update_centers(outputs: Outputs, labels: Tensor, system: System, loss: Loss) -> None:
    """Move the class centers after the step that used them."""
    if loss.m3_cluster:
        system.centers.update(outputs.classes.detach(), labels, outputs.wanted)
    elif loss.modc_cluster:
        system.centers.update(outputs.attribute.detach()[:, system.attribute_of_class], labels)
