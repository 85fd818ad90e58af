"""What each network gives and knows, each loss and score needs: settings that don't belong together end in a sentence.

Kept apart from the networks, so that the pipeline's first stage can check every row before torch is imported.
"""

from collections.abc import Iterator
from itertools import accumulate

from m3lib.config import Loss, Variant
from m3lib.errors import InputError

GIVES = {  # the embeddings of `models.Outputs`; every attribute embedding gets class logits once Loss 1 is switched on
    "classifier": {"logits"},
    "asen": {"attribute"},
    "asen_v2": {"attribute"},
    "asen_pp": {"attribute", "local"},
    "modc": {"attribute", "centers"},
    "m3_a": {"attribute", "logits", "classes"},
    "m3_c": {"logits", "classes"},
    "m3": {"attribute", "logits", "classes"},
}
LOSSES = {  # what a loss reads
    "asen_triplet": {"attribute"},
    "asen_pp_local": {"local"},
    "asen_pp_align": {"attribute", "local"},
    "modc_cluster": {"attribute", "centers"},
    "modc_pseudo": {"attribute", "centers"},
    "m3_classification": {"logits"},
    "m3_instance": {"classes"},
    "m3_cluster": {"classes"},
}
SCORES = {  # what a score reads of the stored embeddings
    "attribute": ("attribute",),
    "segment": ("attribute", "posterior"),
    "soft_segment": ("attribute", "posterior"),
    "concat": ("classes",),
    "top_class": ("classes", "posterior"),
    "weighted": ("classes", "posterior"),
    "posterior": ("posterior",),
}
EVERY = {"backbone", "backbone_options", "pretrained", "weights", "input_scale"}
LOCAL = {
    f"local_{name}" for name in ("backbone", "backbone_options", "weights", "from_global", "attention_width", "size")
}
MODEL = {  # the settings of `model` that a network reads, beside EVERY
    "classifier": set(),
    "asen": {"attention_width", "attribute_embedding"},
    "asen_v2": {"attention_width", "queries", "attention_batch_norm"},
    "asen_pp": {
        "attention_width",
        "queries",
        "attention_batch_norm",
        "attribute_embedding",
        "box_threshold",
        "beta",
        *LOCAL,
    },
    "modc": {"attention_width", "queries", "attention_batch_norm", "temperature"},
    "m3_a": {"attention_width", "queries", "attention_batch_norm", "class_embedding"},
    "m3_c": {"attention_width", "attention_batch_norm", "class_embedding"},
    "m3": {"attention_width", "queries", "attention_batch_norm", "class_embedding", "attribute_conditioned", "refine"},
}


def gives(variant: Variant) -> set[str]:
    """The outputs of a row's network, with the logits that Loss 1 adds to a system of attribute embeddings."""
    own = GIVES[variant.network]
    learned = any(stage.loss.m3_classification for stage in variant.stages)
    return own | ({"logits"} if "attribute" in own and learned else set())


def active(loss: Loss) -> list[str]:
    """The losses with a weight."""
    return [name for name in LOSSES if getattr(loss, name)]


def check_variant(variant: Variant) -> None:
    """Raise InputError for a setting that a row's network does not know, or that contradicts another."""
    row = f"params.yaml, systems.{variant.name}"
    for problem in problems(variant):
        raise InputError(f"{row}{problem}")


def problems(variant: Variant) -> Iterator[str]:
    """What is wrong with a row, the first thing first."""
    network, given = variant.network, gives(variant)
    for change in variant.changes:
        section, _, name = change.partition(".")
        known = EVERY | MODEL[network]
        if section == "model" and name.split(".")[0] not in known:
            yield f".{change}: {network} has no such setting (it reads {', '.join(sorted(known))})"
    for number, stage in enumerate(variant.stages):
        if not active(stage.loss):
            yield f", stage {number}: every loss has weight 0, nothing would be trained"
        for name in active(stage.loss):
            if not LOSSES[name] <= given:
                needs = ", ".join(sorted(LOSSES[name] - given))
                yield f": loss.{name} needs {needs} outputs, which {network} does not give ({', '.join(sorted(given))})"
        if stage.loss.modc_pseudo and not (stage.loss.modc_cluster or stage.loss.asen_triplet):
            yield f", stage {number}: loss.modc_pseudo weighs the losses asen_triplet and modc_cluster, and both are 0"
        if stage.global_lr != 1 and "local" not in given:
            yield f", stage {number}: global_lr spares a local branch, which {network} does not have"
    for need in SCORES[variant.score]:
        if need not in given and not (need == "posterior" and given & {"logits", "centers"}):
            yield f": score {variant.score} needs {need} outputs, which {network} does not give with these losses"


def stage_ends(variant: Variant) -> list[int]:
    """The epoch before which each stage ends: shares add up before they are rounded; each lasts one epoch at least."""
    ends = [0]
    for share in accumulate(stage.epoch_share for stage in variant.stages):
        ends.append(max(round(share * variant.train.epochs), ends[-1] + 1))
    return ends[1:]
