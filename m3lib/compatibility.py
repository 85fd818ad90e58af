"""Which outputs a network produces, which losses, scores and model settings go with it.

Every system class declares `outputs`, `losses` and `settings` as plain literals below its docstring. This module reads
them from the source, so that the first stage of the pipeline checks all rows in milliseconds, without importing torch.
"""

import ast
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from m3lib.errors import InputError
from m3lib.taxonomy import did_you_mean

SYSTEMS_FOLDER = Path(__file__).parent / "systems"
LOSSES = (  # the weights in params.yaml, `loss`; each but the first is named by its system
    "classification",
    "asen_triplet",
    "asen_pp_local",
    "asen_pp_align",
    "modc_cluster",
    "modc_pseudo",
    "m3_classification",
    "m3_instance",
    "m3_cluster",
    "duet_classification",
)
LOGIT_LOSSES = {"classification", "m3_classification", "duet_classification"}
CLASS_LOSSES = {"m3_instance", "m3_cluster"}  # that train class-specific embeddings
PAIR_LOSSES = ("asen_triplet", "asen_pp_local", "modc_pseudo", "m3_instance", "m3_cluster")
LOSS_SETTINGS = {  # the other settings in `loss`: the losses that read them
    "pairs": PAIR_LOSSES,
    "contrast_temperature": PAIR_LOSSES,
    "margin": (*PAIR_LOSSES, "modc_cluster"),
    "pseudo_margin": ("modc_pseudo",),
    "hardness": PAIR_LOSSES,
    "center_momentum": ("modc_cluster", "m3_cluster"),
    "positive_power": ("m3_classification", "duet_classification"),
}
SCORES = {  # score: the stored embeddings that it compares
    "attribute": ("attribute",),
    "segment": ("attribute", "posterior"),
    "soft_segment": ("attribute", "posterior"),
    "concat": ("classes",),
    "top_class": ("classes", "posterior"),
    "weighted": ("classes", "posterior"),
    "posterior": ("posterior",),
    "open": ("attribute", "posterior"),
}
COMMON_SETTINGS = {  # every network reads these
    *("backbone", "backbone_options", "pretrained", "weights", "input_scale", "trainable", "cache_frozen"),
}


class Declaration(NamedTuple):
    """What a system class says about itself."""

    outputs: set[str]  # fields of systems.base.Outputs, and "centers"
    losses: set[str]
    settings: set[str]  # keys of `model` in params.yaml, beside COMMON_SETTINGS


@cache
def registry() -> dict[str, str]:
    """Network name to "module.Class", the literal SYSTEMS of systems/__init__.py."""
    return literals(parsed(SYSTEMS_FOLDER / "__init__.py"))["SYSTEMS"]


@cache
def declaration(network: str) -> Declaration:
    """Read what the class of a network declares. Raises InputError if a declaration is missing or not a literal."""
    module, _, class_name = registry()[network].partition(".")
    path = SYSTEMS_FOLDER / f"{module}.py"
    bodies = [node for node in parsed(path).body if isinstance(node, ast.ClassDef) and node.name == class_name]
    if not bodies:
        raise InputError(f"{path}: there is no class {class_name!r}, which SYSTEMS names for {network!r}")
    declared = literals(bodies[-1])
    wrong = [name for name in Declaration._fields if not is_set_of_texts(declared.get(name))]
    if wrong:
        raise InputError(f"{path.name}, class {class_name}: declare {', '.join(wrong)} as literal sets of strings")
    return Declaration(*(set(declared[name]) for name in Declaration._fields))


def is_set_of_texts(value: Any) -> bool:
    return value == {} or (isinstance(value, set) and all(isinstance(item, str) for item in value))


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a module. Raises InputError if it can't be read or is not valid Python."""
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid Python ({error.msg})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({getattr(error, 'strerror', error)})") from None


def literals(body: ast.Module | ast.ClassDef) -> dict[str, Any]:
    """The names in a module or class body that are assigned a literal, with their values; other names are left out."""
    values = {}
    for node in body.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            with suppress(ValueError, TypeError):  # `scale = math.sqrt(2)`, `options = {[]: 1}`, `x: int`
                values[ast.unparse(target)] = ast.literal_eval(node.value)
    return values


def outputs_of(variant: Any) -> set[str]:
    """The outputs of a row's network; a loss on class logits adds them to a network with attribute embeddings."""
    outputs = declaration(variant.network).outputs
    trains_logits = not LOGIT_LOSSES.isdisjoint(losses_of(variant))
    return outputs | ({"logits"} if "attribute" in outputs and trains_logits else set())


def active_losses(loss: Any) -> list[str]:
    """The losses with a positive weight."""
    return [name for name in LOSSES if getattr(loss, name)]


def losses_of(variant: Any) -> list[str]:
    """The losses with a positive weight in any stage of a row."""
    return [name for name in LOSSES if any(getattr(stage.loss, name) for stage in variant.stages)]


def problems(variant: Any) -> Iterator[tuple[str, str]]:
    """(setting below `systems.<row>`, sentence) for everything in a `config.Variant` that does not go together."""
    network = variant.network
    if network not in registry():
        yield "network", f"there is no network {network!r}; {did_you_mean(network, list(registry()))}"
        return
    declared, outputs = declaration(network), outputs_of(variant)
    readable = COMMON_SETTINGS | declared.settings
    for change in variant.changes:
        section, _, name = change.partition(".")
        if section == "model" and name.split(".")[0] not in readable:
            yield change, f"{network} has no such setting (it reads {', '.join(sorted(readable))})"
    for number, stage in enumerate(variant.stages):
        if not active_losses(stage.loss):
            yield f"stages.{number}", "every loss has weight 0, so nothing would be trained"
        for name in sorted(set(active_losses(stage.loss)) - declared.losses):
            losses = ", ".join(sorted(declared.losses))
            yield f"stages.{number}.loss.{name}", f"{network} can't be trained with this loss (its losses: {losses})"
        if stage.loss.modc_pseudo and not (stage.loss.modc_cluster or stage.loss.asen_triplet):
            yield f"stages.{number}", "modc_pseudo weighs the losses asen_triplet and modc_cluster, and both are 0"
        if stage.global_lr != 1 and "local" not in outputs:
            yield f"stages.{number}.global_lr", f"it scales everything but a local branch, which {network} lacks"
    if len(twice := sorted(LOGIT_LOSSES.intersection(losses_of(variant)))) > 1:
        sentence = "both train the same class logits, and each to another probability; give one of them the weight 0"
        yield "loss", f"{' and '.join(twice)} {sentence}"
    for need in SCORES[variant.score]:
        if need not in outputs and not (need == "posterior" and outputs & {"logits", "centers"}):
            yield "score", f"{variant.score} compares {need} outputs, which {network} lacks with these losses"
        elif need == "classes" and CLASS_LOSSES.isdisjoint(losses_of(variant)):
            sentence = "compares class-specific embeddings, which no loss of this row trains"
            yield "score", f"{variant.score} {sentence}; give {' or '.join(sorted(CLASS_LOSSES))} a weight"


def check_variant(variant: Any) -> None:
    """Raise InputError with everything in a row that does not go together."""
    faults = [f"systems.{variant.name}.{setting}: {sentence}" for setting, sentence in problems(variant)]
    if faults:
        raise InputError("params.yaml", *faults)
