"""What a training step minimises: the losses of a batch, weighted as its stage says."""

import torch
from torch import Generator, Tensor

from m3lib.config import Loss
from m3lib.systems import losses
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Anchors, Batch, Centers


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
    if loss.evidence:
        logits, weight = outputs.logits.float(), system.positive_weight
        values["evidence"] = losses.evidence_loss(
            logits, labels, system.multi, attribute_of_class, weight, loss.smoothing
        )
    if loss.m3_classification:
        logits, weight = outputs.logits.float(), system.positive_weight
        values["m3_classification"] = losses.m3_classification_loss(logits, labels, weight, attribute_of_class)
    if loss.asen_triplet:
        values["asen_triplet"] = attribute_pair_loss(f, anchors, attribute_of_class, loss, generator, system)
    if loss.asen_pp_local:
        values["asen_pp_local"] = attribute_pair_loss(outputs.local, anchors, attribute_of_class, loss, generator)
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
        values |= class_pair_losses(outputs.classes, space, anchors, system.centers, loss, generator)
    return {name: getattr(loss, name) * value for name, value in values.items() if getattr(loss, name)}


def attribute_pair_loss(
    embedding: Tensor, anchors: Anchors, attribute_of_class: Tensor, loss: Loss, generator: Generator, system=None
) -> Tensor:
    """ASEN's triplet loss, MODC's instance loss, in the space of the anchor's attribute; all pairs if the settings say.

    embedding: (B, N, D), unit rows.
    """
    space = attribute_of_class[anchors.class_id]
    if loss.pairs == "all":
        cosines = losses.anchor_cosines(embedding, anchors.image, space)
        positives, negatives = anchors.positives, anchors.negatives
        memory = getattr(system, "memory", None)
        if loss.memory and memory is not None:
            past, labels = memory  # (R, N, D), (R, M)
            known = losses.known_attributes(labels, attribute_of_class)[:, attribute_of_class]
            own = embedding[anchors.image, space]  # (A, D)
            more = own.new_empty(len(own), len(past))
            for n in space.unique():
                more[space == n] = own[space == n] @ past[:, n].T
            cosines = torch.cat([cosines, more], dim=1)
            positives = torch.cat([positives, labels.T[anchors.class_id]], dim=1)
            negatives = torch.cat([negatives, (known & ~labels).T[anchors.class_id]], dim=1)
        return losses.contrast_loss(cosines, positives, negatives, loss.contrast_temperature)
    positive, negative = losses.sample_triplets(embedding, space, anchors, loss.hardness, generator)
    return losses.triplet_loss(positive, negative, loss.margin)


def class_pair_losses(
    phi: Tensor, space: Tensor, anchors: Anchors, centers: Centers, loss: Loss, generator: Generator
) -> dict[str, Tensor]:
    """M3-Net's Losses 2 and 3; the positive of Loss 3 is the class center, if the class has one yet (poster).

    phi: (B, K, d), unit rows; space: (A,) int64, the anchors' classes among the K.
    """
    seen, image = centers.seen[anchors.class_id], anchors.image[:, None]
    to_center = (phi[anchors.image, space] * centers.value[anchors.class_id]).sum(dim=1)  # (A,)
    if loss.pairs == "all":
        cosines, temperature = losses.anchor_cosines(phi, anchors.image, space), loss.contrast_temperature
        instance = losses.contrast_loss(cosines, anchors.positives, anchors.negatives, temperature)
        # the center takes the column of the anchor's image, which is not compared with itself
        cosines = cosines.scatter(1, image, to_center[:, None])[seen]
        is_center = torch.zeros_like(anchors.positives).scatter(1, image, True)[seen]
        cluster = losses.contrast_loss(cosines, is_center, anchors.negatives[seen], temperature)
    else:
        positive, negative = losses.sample_triplets(phi, space, anchors, loss.hardness, generator)
        instance = losses.triplet_loss(positive, negative, loss.margin)
        cluster = losses.triplet_loss(to_center[seen], negative[seen], loss.margin)
    return {"m3_instance": instance, "m3_cluster": cluster}


def pseudo_loss(
    embedding: Tensor, labels: Tensor, pseudo: Tensor, system: System, loss: Loss, generator: Generator
) -> Tensor:
    """MODC's instance and cluster losses on pseudo-labels; labelled images may be positives and negatives."""
    attribute_of_class, values = system.attribute_of_class, []
    if loss.asen_triplet:
        anchors = losses.find_anchors(labels | pseudo, attribute_of_class)
        guessed = pseudo[anchors.image, anchors.class_id]
        anchors = Anchors(*(field[guessed] for field in anchors))
        instance = attribute_pair_loss(embedding, anchors, attribute_of_class, loss, generator)
        values.append(loss.asen_triplet * instance)
    if loss.modc_cluster:
        cosines, seen = losses.center_cosines(embedding, system.centers.value, attribute_of_class), system.centers.seen
        cluster = losses.center_loss(cosines, pseudo, seen, attribute_of_class, loss.margin)
        values.append(loss.modc_cluster * cluster)
    return sum(values)


@torch.no_grad()
def update_centers(outputs: Outputs, labels: Tensor, system: System, loss: Loss) -> None:
    """Move the class centers towards the batch, after the step that used them."""
    if loss.memory:
        past = getattr(system, "memory", None)
        new = outputs.attribute.detach(), labels
        both = new if past is None else [torch.cat([x, y])[-loss.memory :] for x, y in zip(past, new, strict=True)]
        system.memory = tuple(both)
    if loss.m3_cluster:
        system.centers.update(outputs.classes.detach(), labels, outputs.class_ids)
    elif loss.modc_cluster:
        system.centers.update(outputs.attribute.detach()[:, system.attribute_of_class], labels)
