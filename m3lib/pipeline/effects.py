"""Which settings have no effect in this run, and which reach some rows only: the notes of the first stage.

A setting that a person changed has an effect if this run reads other values with it than without the change. What a run
reads is one table per row (`row_values`) and one of everything else (`run_values`); both leave out what this source,
network, loss, sampler or schedule does not use.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from m3lib.compatibility import COMMON_SETTINGS, LOSS_SETTINGS, LOSSES, active_losses, declaration, losses_of, registry
from m3lib.config import Settings, Stage, Variant, parse
from m3lib.errors import InputError, shown
from m3lib.layers import AUTO
from m3lib.pipeline.changes import MISSING, Keys, changes, dotted, lookup, with_value
from m3lib.validation import ROW_SECTIONS

SOURCES = {"wardrobe": ("wardrobe",), "csv": ("csv",), "benchmark": ("deepfashion", "fashionai", "darn")}
BY_SAMPLER = ("asen", "asen_pp", "asen_pp_exact")
SQUARE = "the drawn images are square"
GIVEN = ("csv.split_column gives the splits", lambda run: run.source != "csv" or not run.csv.split_column)
STEP = ("no row has train.schedule step", lambda stage: stage.train.schedule == "step")
NEEDS = {  # a setting that another one switches off: why it has no effect then, and whether the run (config.Settings),
    # a row of it (Variant) or a stage of a row's training (Stage) reads it
    "preset": ("this run does not read what the preset sets", lambda run: False),
    "split.valid": GIVEN,
    "split.test": GIVEN,
    "images.max_unreadable": ("the photos are drawn", lambda run: run.source != "wardrobe"),
    "images.fit": (SQUARE, lambda run: run.source != "wardrobe" or run.images.height != run.images.width),
    "model.pretrained": ("model.weights is set", lambda row: not row.model.weights or has_own_local_branch(row)),
    "model.trainable": ("the whole backbone is frozen", lambda row: row.network != "frozen"),
    "model.cache_frozen": ("no block is frozen", lambda row: row.network == "frozen" or row.model.trainable != "all"),
    "model.local_weights": ("model.local_from_global copies the global branch", lambda row: has_own_local_branch(row)),
    "loss.margin": ("loss.pairs is all", lambda stage: drawn(stage) or stage.loss.modc_cluster),
    "loss.contrast_temperature": ("loss.pairs is drawn", lambda stage: not drawn(stage)),
    "loss.hardness": (
        "train.sampler or loss.pairs leaves no pair to draw",
        lambda stage: drawn(stage) and (not triplets(stage) or stage.loss.modc_pseudo),
    ),
    "index.uri": ("index.engine is faiss", lambda run: run.index.engine == "lancedb"),
    "index.columns": ("index.engine is faiss", lambda run: run.index.engine == "lancedb"),
    "train.triplets": (f"no row has train.sampler {' or '.join(BY_SAMPLER)}", lambda stage: triplets(stage)),
    "train.warmup": ("no row has train.schedule cosine", lambda stage: stage.train.schedule == "cosine"),
    "train.step_epochs": STEP,
    "train.step_factor": STEP,
}


def notes(values: dict, committed: dict | None = None) -> list[str]:
    """Sentences on settings without effect. values, committed: params.yaml now and, if known, in the last commit."""
    run, partial, without, mentioned = Run(values), [], defaultdict(list), set()
    for path in changes(committed, values) if committed is not None else []:
        reached, owners = run.reached(path, committed), run.owners(path)
        if not reached and lookup(values, path) is not MISSING:
            without[run.reason(path, lookup(committed, path))].append(dotted(path))
        elif owners:
            partial.append(reach(path, values, [name for name in reached if name], owners))
        mentioned.add(path)
    unread = [f"{', '.join(names)}: changed without effect, since {reason}" for reason, names in without.items()]
    return [*partial, *unread, *replaced_blocks(run, committed or {}, mentioned), *replaced_by_rows(run, mentioned)]


# ---- what a run reads


class Run:
    """A run: its settings, and what it reads of them, by row; "" for everything that is not of one row."""

    def __init__(self, values: dict):
        self.values = values
        self.settings = parse(values)
        self.preset = self.settings.preset
        self.preset_values = values["presets"][self.preset]
        self.rows = {name: row_values(self.settings.variant(name)) for name in self.settings.variants}
        self.reads = {"": run_values(self.settings), **self.rows}

    def reached(self, path: Keys, committed: dict) -> list[str]:
        """The keys of `reads` that differ from those without the change of one setting."""
        try:
            before = Run(with_value(self.values, path, committed)).reads
        except InputError:  # the other changes need this one
            return list(self.reads)
        return [name for name, values in self.reads.items() if values != before.get(name)]

    def effective(self, path: Keys) -> Keys:
        """A path without `presets.<preset>` or `sources.<source>`, if it starts with this run's preset or source."""
        own = path[:2] in (("presets", self.preset), ("sources", self.settings.source))
        return path[2:] or path if own else path

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

    def reason(self, path: Keys, before: Any) -> str:
        """Why a setting changed from a value `before` has no effect, and what to change instead, if anything."""
        inner = self.effective(path)
        section, key = inner[0], inner[-1]
        if section == "presets":
            return f"preset is {self.preset}"
        if path[0] != "presets" and len(inner) > 1 and inner[1] in self.preset_values.get(section, {}):
            full = ("presets", self.preset, *inner)
            plus = "+" if lookup(self.values, full) is MISSING else ""  # for a key that is not listed yet
            return f"the preset {self.preset} replaces it: use -S {plus}{dotted(full)}=..."
        source = self.settings.source
        if section in SOURCES or section == "sources":
            return f"source is {source}"
        values = (before, general := lookup(self.values, inner))
        if path[0] == "sources" and general != AUTO:
            return f"{dotted(inner)} is {shown(general)}, not auto"
        if AUTO in values and lookup(self.values, ("sources", source, *inner)) in values:
            return f"sources.{source} has the same value"
        if section == "systems" and not self.heirs(inner[1]):
            return f"{inner[1]} is not in variants"
        if owners := self.owners(path):
            return f"rows set their own: {listed(owners)}"
        return self.unread(inner[2] if section == "systems" and len(inner) > 2 else section, key, dotted(inner[-2:]))

    def unread(self, section: str, key: str, name: str) -> str:
        """Why no row, or nothing else, reads a setting."""
        variants = [self.settings.variant(row) for row in self.rows]
        losses = LOSS_SETTINGS.get(key, ()) if section == "loss" else ()
        if losses and not any(set(losses_of(variant)) & set(losses) for variant in variants):
            return f"no row has a loss that reads it ({', '.join(losses)})"
        readers = [network for network in registry() if key in declaration(network).settings | COMMON_SETTINGS]
        if section == "model" and not any(variant.network in readers for variant in variants):
            return f"no row has a network that reads it ({', '.join(readers)})"
        return NEEDS.get(name, ("nothing of this run reads it",))[0]


def triplets(stage: Stage) -> bool:
    return stage.train.sampler in BY_SAMPLER


def drawn(stage: Stage) -> bool:
    return stage.loss.pairs == "drawn"


def has_own_local_branch(variant: Variant) -> bool:
    return "local_weights" in declaration(variant.network).settings and not variant.model.local_from_global


def used(name: str, reader: Settings | Variant | Stage) -> bool:
    """Whether nothing switches a setting off; reader: what may read it, as in NEEDS."""
    section, _, key = name.partition(".")
    if section == "loss" and not set(LOSS_SETTINGS.get(key, (key,))) & set(active_losses(reader.loss)):
        return False
    return name not in NEEDS or bool(NEEDS[name][1](reader))


def row_values(variant: Variant) -> dict[str, Any]:
    """What the training and evaluation of a row read, by dotted name; a list has one value per stage."""
    row = variant.resolved()
    values = {key: row[key] for key in ("network", "score")}
    values["stages"] = [(stage.epoch_share, stage.restart, stage.global_lr) for stage in variant.stages]
    values |= {name: value for key, value in row["model"].items() if used(name := f"model.{key}", variant)}
    for section in ("loss", "train"):
        for key in vars(getattr(variant, section)):
            if reading := [stage for stage in variant.stages if used(f"{section}.{key}", stage)]:
                values[f"{section}.{key}"] = [getattr(getattr(stage, section), key) for stage in reading]
    return values


def run_values(settings: Settings) -> dict[str, Any]:
    """What a run reads besides its rows, by dotted name: no section of another source, and nothing that is unused."""
    left_out = {"presets", "sources", "systems", *ROW_SECTIONS}
    left_out |= {name for name, sources in SOURCES.items() if settings.source not in sources}
    sections = {name: value for name, value in asdict(settings).items() if name not in left_out}
    values = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    values |= {f"{name}.{key}": v for name, value in sections.items() if name not in values for key, v in value.items()}
    return {name: value for name, value in values.items() if used(name, settings)}


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


def replaced_blocks(run: Run, committed: dict, mentioned: set[Keys]) -> Iterator[str]:
    """A sentence on values of the source's block whose general setting is not `auto`, as committed; `-S` may replace an
    `auto`, and what is mentioned already is left out."""
    block = ("sources", run.settings.source)
    paths = [(section, key) for section, values in (run.values["sources"].get(block[1], {})).items() for key in values]
    names = [
        dotted(path)
        for path in paths
        if AUTO not in (lookup(run.values, path), lookup(committed, path)) and (*block, *path) not in mentioned
    ]
    if names:
        yield f"{dotted(block)} sets {', '.join(names)} without effect, since the general settings are not auto"


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
