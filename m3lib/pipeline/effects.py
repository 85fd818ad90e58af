"""Which settings have no effect in this run, and which reach some rows only: the notes of the first stage.

A setting that a person changed has an effect if this run reads other values with it than without the change. What a run
reads is one table per row (`row_values`) and one of everything else (`run_values`); both leave out what this source,
network, loss, sampler or schedule does not use.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

from m3lib.compatibility import COMMON_SETTINGS, LOSS_SETTINGS, LOSSES, active_losses, declaration, registry
from m3lib.config import Settings, Variant
from m3lib.errors import InputError, shown
from m3lib.pipeline.changes import MISSING, Keys, changes, dotted, lookup, with_value
from m3lib.validation import ROW_SECTIONS, validate, with_preset

SOURCES = {"wardrobe": ("wardrobe",), "csv": ("csv",), "benchmark": ("deepfashion", "fashionai", "darn")}
IMAGE_SAMPLERS = ("uniform", "balanced")
TRAIN_SETTINGS = {  # a setting of `train` that only some values of another one use
    "triplets": ("sampler", ("asen", "asen_pp", "asen_pp_exact")),
    "warmup": ("schedule", ("cosine",)),
    "step_epochs": ("schedule", ("step",)),
    "step_factor": ("schedule", ("step",)),
}
UNUSED = {  # a section or a setting of one: why a run may not use it
    "preset": "this run does not read what the preset sets",
    "rendezvous": "nodes is 1",
    "split": "csv.split_column gives the splits",
    "images": "the drawn images are square and none is missing",
    "pretrained": "model.weights is set",
    "local_weights": "model.local_from_global copies the global branch",
}


def notes(values: dict, committed: dict | None = None) -> list[str]:
    """Sentences on settings without effect. values, committed: params.yaml now and, if known, in the last commit."""
    run, partial, without, mentioned = Run(values), [], defaultdict(list), set()
    for path in changes(committed, values) if committed is not None else []:
        reached, owners = run.reached(path, committed), run.owners(path)
        if not reached and lookup(values, path) is not MISSING:
            without[run.reason(path)].append(dotted(path))
        elif owners:
            partial.append(reach(path, values, [name for name in reached if name], owners))
        mentioned.add(path)
    unread = [f"{', '.join(names)}: changed without effect, since {reason}" for reason, names in without.items()]
    return [*partial, *unread, *replaced_by_rows(run, mentioned), *replaced_by_preset(run)]


# ---- what a run reads


class Run:
    """A run: its settings, and what it reads of them, by row; "" for everything that is not of one row."""

    def __init__(self, values: dict):
        self.values = values
        self.settings = validate(Settings, with_preset(values))
        self.preset = self.settings.preset
        self.rows = {name: row_values(self.settings.variant(name)) for name in self.settings.variants}
        self.reads = {"": run_values(self.settings), **self.rows}

    @cached_property
    def preset_values(self) -> dict:
        return self.values["presets"][self.preset]

    def reached(self, path: Keys, committed: dict) -> list[str]:
        """The keys of `reads` that differ from those without the change of one setting."""
        try:
            before = Run(with_value(self.values, path, committed)).reads
        except InputError:  # the other changes need this one
            return list(self.reads)
        return [name for name, values in self.reads.items() if values != before.get(name)]

    def effective(self, path: Keys) -> Keys:
        """A path without `presets.<preset>`, if it starts with this run's preset."""
        return path[2:] or path if path[:2] == ("presets", self.preset) else path

    def heirs(self, row: str) -> list[str]:
        """The rows of `variants` that are a row or, over any number of steps, like it."""
        return [name for name in self.rows if row in self.chain(name)]

    def chain(self, row: str) -> list[str]:
        """A row, the row that it is like, and so on."""
        rows = [row]
        while parent := self.settings.systems[rows[-1]].get("like"):
            rows.append(parent)
        return rows

    def place(self, row: str) -> str:
        """The dotted name of a row, which may be one of the preset."""
        from_preset = row in self.preset_values.get("systems", {})
        return f"presets.{self.preset}.systems.{row}" if from_preset else f"systems.{row}"

    def owners(self, path: Keys) -> dict[tuple[str, str], list[str]]:
        """(dotted name, value) -> rows that use this value, which they or a row that they are like set themselves,
        instead of the general setting or the parent row's setting that a path names."""
        inner = self.effective(path)
        row = inner[1] if inner[0] == "systems" and len(inner) == 4 else None
        if len(inner) != (4 if row else 2) or inner[-2] not in ROW_SECTIONS:
            return {}
        section, key = inner[-2:]
        found = defaultdict(list)
        for name in self.heirs(row) if row else self.rows:
            if f"{section}.{key}" in self.rows[name]:
                for owner in self.own(name, section, key, row):
                    found[owner].append(name)
        return dict(found)

    def own(self, name: str, section: str, key: str, above: str | None) -> Iterator[tuple[str, str]]:
        """(dotted name, value) of a row's stages and of the nearest row below `above` that set a value."""
        systems, rows = self.settings.systems, self.chain(name)
        staged = next((row for row in rows if systems[row].get("stages")), None)
        for number, stage in enumerate(systems[staged]["stages"] if staged else ()):
            if key in stage.get(section, {}):
                yield f"{self.place(staged)}.stages.{number}.{section}.{key}", shown(stage[section][key])
        for row in rows[: rows.index(above)] if above else rows:
            if key in systems[row].get(section, {}):
                yield f"{self.place(row)}.{section}.{key}", shown(systems[row][section][key])
                return

    def reason(self, path: Keys) -> str:
        """Why a changed setting has no effect, and what to change instead, if anything."""
        inner = self.effective(path)
        section, key = inner[0], inner[-1]
        if section == "presets":
            return f"preset is {self.preset}"
        if inner == path and len(path) > 1 and path[1] in self.preset_values.get(section, {}):
            return f"the preset {self.preset} replaces it: use -S {self.command(path)}"
        if section in SOURCES:
            return f"source is {self.settings.source}"
        if section == "systems" and not self.heirs(inner[1]):
            return f"{inner[1]} is not in variants"
        if owners := self.owners(path):
            return f"rows set their own: {listed(owners)}"
        return self.unread(inner[2] if section == "systems" and len(inner) > 2 else section, key)

    def command(self, path: Keys) -> str:
        """What sets a setting in the preset: a key that is not listed yet needs a plus sign."""
        full = ("presets", self.preset, *path)
        return f"{'+' * (lookup(self.values, full) is MISSING)}{dotted(full)}=..."

    def unread(self, section: str, key: str) -> str:
        """Why no row, or nothing else, reads a setting."""
        variants = [self.settings.variant(name) for name in self.rows]
        if section == "loss" and key in LOSS_SETTINGS:
            active = {name for variant in variants for stage in variant.stages for name in active_losses(stage.loss)}
            if active & set(LOSS_SETTINGS[key]):
                return "train.sampler draws the triplets by itself"
            return f"no row has a loss that reads it ({', '.join(LOSS_SETTINGS[key])})"
        if section == "train" and key in TRAIN_SETTINGS:
            other, needed = TRAIN_SETTINGS[key]
            return f"no row has train.{other} {' or '.join(needed)}"
        readers = [name for name in registry() if key in declaration(name).settings | COMMON_SETTINGS]
        if section == "model" and not any(variant.network in readers for variant in variants):
            return f"no row has a network that reads it ({', '.join(readers)})"
        return UNUSED.get(key, UNUSED.get(section, "nothing of this run reads it"))


def row_values(variant: Variant) -> dict[str, Any]:
    """What the training and evaluation of a row read, by dotted name; a list has one value per stage."""
    stages, network = variant.stages, declaration(variant.network).settings | COMMON_SETTINGS
    shares = [(stage.epoch_share, stage.restart, stage.global_lr) for stage in stages]
    values: dict[str, Any] = {"network": variant.network, "score": variant.score, "stages": shares}
    values |= {f"model.{key}": value for key, value in asdict(variant.model).items() if key in network}
    if variant.model.local_from_global:
        values.pop("model.local_weights", None)
    if variant.model.weights and "model.local_weights" not in values:
        values.pop("model.pretrained")
    for section in ("loss", "train"):
        for key in asdict(getattr(variant, section)):
            if reading := [stage for stage in stages if reads(stage, section, key)]:
                values[f"{section}.{key}"] = [getattr(getattr(stage, section), key) for stage in reading]
    return values


def reads(stage: Any, section: str, key: str) -> bool:
    """Whether a stage of a training reads a setting of `loss` or `train`."""
    if section == "train":
        other, needed = TRAIN_SETTINGS.get(key, ("schedule", (stage.train.schedule,)))
        return getattr(stage.train, other) in needed
    active = set(active_losses(stage.loss))
    if key == "hardness" and stage.train.sampler not in IMAGE_SAMPLERS:
        active &= {"modc_pseudo"}  # the other triplets are the sampler's
    return key in active or bool(active & set(LOSS_SETTINGS.get(key, ())))


def run_values(settings: Settings) -> dict[str, Any]:
    """What a run reads besides its rows: everything but sections of other sources and settings that nothing uses."""
    values = asdict(settings)
    unused = [name for name, sources in SOURCES.items() if settings.source not in sources]
    for section in ("preset", "presets", "systems", *ROW_SECTIONS, *unused):
        del values[section]
    if settings.nodes == 1:
        del values["rendezvous"]
    if settings.source == "csv" and settings.csv.split_column:
        del values["split"]["valid"], values["split"]["test"]
    if settings.source == "wardrobe":
        del values["images"]["max_unreadable"]
        if settings.images.height == settings.images.width:
            del values["images"]["fit"]
    return values


# ---- sentences


def reach(path: Keys, values: dict, rows: list[str], owners: dict[tuple[str, str], list[str]]) -> str:
    """The sentence on a changed setting that some rows, or stages of them, replace by a value of their own."""
    value = lookup(values, path)
    setting = dotted(path) if value is MISSING else f"{dotted(path)} = {shown(value)}"
    in_part = {name for names in owners.values() for name in names} <= set(rows)
    reached = "does not reach all stages" if in_part else f"reaches {', '.join(rows)} only"
    return f"{setting} {reached}; rows set their own: {listed(owners)}"


def listed(owners: dict[tuple[str, str], list[str]]) -> str:
    """Which settings have which values for which rows, as `systems.m3.train.lr = 0.016 (m3_a, m3_c, m3)`."""
    return ", ".join(f"{name} = {value} ({', '.join(rows)})" for (name, value), rows in owners.items())


def replaced_by_rows(run: Run, mentioned: set[Keys]) -> list[str]:
    """A sentence on general settings that rows of `systems` replace, without those that are mentioned already."""
    by_place = defaultdict(list)
    for section in ROW_SECTIONS:
        for key, value in asdict(getattr(run.settings, section)).items():
            is_weight, end = key in LOSSES and not value, f".{section}.{key}"
            owners = {} if is_weight or (section, key) in mentioned else run.owners((section, key))
            places = tuple(dict.fromkeys(name.removesuffix(end) for name, _ in owners))
            if places and places[0].startswith("systems."):
                by_place[places].append(f"{section}.{key}")
    groups = [f"{', '.join(names)} (in {', '.join(places)})" for places, names in by_place.items()]
    return ["rows replace these general settings: " + "; ".join(groups)] if groups else []


def replaced_by_preset(run: Run) -> list[str]:
    """A sentence on what the preset replaces, of what this run reads."""
    names = [
        f"{section}.{key}"
        for section, values in run.preset_values.items()
        for key in values
        if section in run.reads[""] or section in ROW_SECTIONS or (section == "systems" and run.heirs(key))
    ]
    where = f"presets.{run.preset}"
    return [f"the preset {run.preset} replaces {', '.join(names)}: change them in {where}"] if names else []
