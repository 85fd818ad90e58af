"""What a training step minimises: the losses of a batch, weighted as its stage says."""

import torch
from torch import Generator, Tensor

from m3lib.config import Loss
from m3lib.systems import losses
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Anchors, Batch


def total_loss(
    outputs: Outputs, batch: Batch, system: System, loss: Loss, generator: Generator, pseudo: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the weighted losses of one batch by name, without those of weight 0; training minimises their sum.

    pseudo: (B, M) bool, MODC's pseudo-labels of the batch.
    """
    labels, anchors, attribute_of_class = batch.labels, batch.anchors, system.attribute_of_class
    f, margin = outputs.attribute, loss.margin
    values = {}
    if loss.classification:
        logits = outputs.logits.float()
        values["classification"] = losses.classification_loss(logits, labels, system.multi, attribute_of_class)
    if loss.m3_classification:
        logits, weight = outputs.logits.float(), system.positive_weight
        values["m3_classification"] = losses.m3_classification_loss(logits, labels, weight, attribute_of_class)
    if loss.asen_triplet:
        values["asen_triplet"] = attribute_triplet_loss(f, anchors, attribute_of_class, loss, generator)
    if loss.asen_pp_local:
        values["asen_pp_local"] = attribute_triplet_loss(outputs.local, anchors, attribute_of_class, loss, generator)
    if loss.asen_pp_align:
        known = losses.known_attributes(labels, attribute_of_class)
        values["asen_pp_align"] = losses.align_loss(f, outputs.local, known)
    if loss.modc_cluster:
        cosines = losses.center_cosines(f, system.centers.value, attribute_of_class)
        values["modc_cluster"] = losses.center_loss(cosines, labels, system.centers.seen, attribute_of_class, margin)
    if loss.modc_pseudo and pseudo is not None:
        values["modc_pseudo"] = pseudo_loss(f, labels, pseudo, system, loss, generator)
    if loss.m3_instance or loss.m3_cluster:
        space = anchors.class_id
        if outputs.class_ids is not None:
            space = torch.searchsorted(outputs.class_ids, space)
        phi, positive, negative = losses.sample_triplets(outputs.classes, space, anchors, loss.hardness, generator)
        if loss.m3_instance:
            values["m3_instance"] = losses.triplet_loss(positive, negative, margin)
        if loss.m3_cluster:  # Loss 3 of M3-Net's poster: the positive is the class center, if the class has one yet
            to_center = (phi * system.centers.value[anchors.class_id]).sum(dim=1)  # (A,)
            seen = system.centers.seen[anchors.class_id]
            values["m3_cluster"] = losses.triplet_loss(to_center[seen], negative[seen], margin)
    return {name: getattr(loss, name) * value for name, value in values.items()}


def attribute_triplet_loss(
    embedding: Tensor, anchors: Anchors, attribute_of_class: Tensor, loss: Loss, generator: Generator
) -> Tensor:
    """ASEN's triplet loss, MODC's instance loss: triplets in the space of the anchor's attribute.

    embedding: (B, N, D), unit rows.
    """
    space = attribute_of_class[anchors.class_id]
    _, positive, negative = losses.sample_triplets(embedding, space, anchors, loss.hardness, generator)
    return losses.triplet_loss(positive, negative, loss.margin)


def pseudo_loss(
    embedding: Tensor, labels: Tensor, pseudo: Tensor, system: System, loss: Loss, generator: Generator
) -> Tensor:
    """MODC's instance and cluster losses on pseudo-labels; labelled images may be positives and negatives."""
    attribute_of_class, values = system.attribute_of_class, []
    if loss.asen_triplet:
        anchors = losses.find_anchors(labels | pseudo, attribute_of_class)
        guessed = pseudo[anchors.image, anchors.class_id]
        anchors = Anchors(*(field[guessed] for field in anchors))
        triplet = attribute_triplet_loss(embedding, anchors, attribute_of_class, loss, generator)
        values.append(loss.asen_triplet * triplet)
    if loss.modc_cluster:
        cosines, seen = losses.center_cosines(embedding, system.centers.value, attribute_of_class), system.centers.seen
        cluster = losses.center_loss(cosines, pseudo, seen, attribute_of_class, loss.margin)
        values.append(loss.modc_cluster * cluster)
    return sum(values)


@torch.no_grad()
def update_centers(outputs: Outputs, labels: Tensor, system: System, loss: Loss) -> None:
    """Move the class centers towards the batch, after the step that used them."""
    if loss.m3_cluster:
        system.centers.update(outputs.classes.detach(), labels, outputs.class_ids)
    elif loss.modc_cluster:
        system.centers.update(outputs.attribute.detach()[:, system.attribute_of_class], labels)
