"""Read YAML and validate it against the settings of config.py: every fault becomes a sentence with a dotted name."""

import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from m3lib.errors import InputError, shown
from m3lib.taxonomy import did_you_mean

TYPE_NAMES = {"int": "an integer", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # of rows and notebooks: goes into commands and file names
RESERVED = re.compile(r"image|row|tie|posterior|embedding|vector_\d+")  # columns of an index in LanceDB
PLAIN = re.compile(r"[^\W\d_]\w*")  # a column that a condition in SQL can name without quotes
ROW_SECTIONS = ("model", "loss", "train")
FIXED_IN_STAGES = [
    *(("train", key) for key in ("epochs", "batch", "sampler", "triplets", "optimizer", "weight_decay")),
    *(("train", key) for key in ("held_out", "precision")),
    *(("loss", key) for key in ("center_momentum", "positive_power")),
]


class Loader(yaml.SafeLoader):
    """Plain values only, and no duplicate keys, of which PyYAML would silently take the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            problem = "an alias, which DVC's -S would expand into a separate copy: use `like: <row>` instead"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file. Raises InputError naming the file and, for invalid YAML, the line."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; restore it with `git checkout params.yaml`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read ({type(error).__name__}: {error})") from None


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text. Raises InputError with its name and, for invalid YAML, the line."""
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        parts = [text for name in ("context", "problem") if (text := getattr(error, name, None))]
        problem = ", ".join(parts) or " ".join(str(error).split())
        raise InputError(f"{name}{line}: not valid YAML ({problem})") from None
    except Exception as error:  # PyYAML passes on whatever a date or a number raises
        raise InputError(f"{name} can't be read ({type(error).__name__}: {error})") from None


def validate(cls: type, values: Any, where: str = "", file: str = "params.yaml") -> Any:
    """Return values as the settings class `cls`; where: their dotted name in a file. Raises InputError, all faults."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        faults = [fault(cls, details, where) for details in error.errors(include_url=False)]
    raise InputError(file, *dict.fromkeys(faults))


def fault(cls: type, error: dict, where: str) -> str:
    """One of pydantic's errors as a sentence that starts with the dotted name of the setting."""
    kind, value, context = error["type"], shown(error["input"]), error.get("ctx", {})
    name = ".".join(str(key) for key in (where, *error["loc"]) if key != "") or "top level"
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        return f"{name}: there is no such setting; {did_you_mean(str(error['loc'][-1]), siblings(cls, error['loc']))}"
    expected = TYPE_NAMES.get(kind.split("_")[0], "")
    is_text = expected == "a number" and isinstance(error["input"], str)
    sentences = {
        "missing": "the setting is missing",
        "dataclass_type": f"expected a mapping of settings, got {value}",
        "dict_type": f"expected a mapping of settings, got {value}",
        "literal_error": f"expected {context.get('expected')}, got {value}",
        "greater_than_equal": f"must be at least {context.get('ge', 0):g}, got {value}",
        "less_than_equal": f"must be at most {context.get('le', 0):g}, got {value}",
        "too_short": "must not be empty",
        "finite_number": f"must be a finite number, got {value}",
        "value_error": str(context.get("error")),
    }
    other = f"expected {expected}, got {value}" if expected else f"{error['msg']}, got {value}"
    return f"{name}: {sentences.get(kind, other)}" + is_text * " (YAML reads 1e-4 as text: write 0.0001)"


def siblings(cls: type, path: tuple) -> list[str]:
    """The names of all settings in the section of a path's last setting."""
    for key in path[:-1]:
        if isinstance(key, str):
            cls = get_type_hints(cls)[key]
            cls = get_args(cls)[0] if get_origin(cls) is tuple else cls
    return [field.name for field in fields(cls)]


def mapping(value: Any, where: str) -> dict:
    """Return value if it is a mapping with text keys. Raises InputError otherwise."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError("params.yaml", f"{where}: expected a mapping of settings, got {shown(value)}")
    return value


def row_values(name: str, settings: Any) -> dict:
    """The values of a `config.Variant`: the general sections, then the rows it is `like`, then its own changes."""
    if name not in settings.systems:
        advice = did_you_mean(name, list(settings.systems))
        raise InputError("params.yaml", f"systems: there is no row {name!r}; {advice}")
    row = resolve_row(name, settings.systems)
    sections = {key: {**asdict(getattr(settings, key)), **row[key]} for key in ROW_SECTIONS}
    stages = [
        {"restart": False, "global_lr": 1.0, **stage}
        | {key: {**sections[key], **stage.get(key, {})} for key in ("loss", "train")}
        for stage in row.get("stages") or [{"epoch_share": 1.0}]
    ]
    listed = {key: value for key, value in settings.systems[name].items() if key in (*ROW_SECTIONS, "stages")}
    own = tuple(sorted(f"{section}.{key}" for section in ROW_SECTIONS for key in row[section]))
    return {"name": name, **row, **sections, "stages": stages, "changes": tuple(dotted_names(listed)), "own": own}


def resolve_row(name: str, systems: dict, heirs: tuple[str, ...] = ()) -> dict:
    """A row of `systems` laid over the row that it is `like`, and that one's parents.

    Sections are merged setting by setting; `network`, `score` and `stages` replace the parent's. Raises InputError for
    an unknown parent, rows that are like each other in a circle, and entries of the wrong shape.
    """
    where = f"systems.{name}"
    row = dict(mapping(systems[name], where))
    for key in ROW_SECTIONS:
        row[key] = dict(mapping(row.get(key, {}), f"{where}.{key}"))
    check_stages(row.get("stages", []), f"{where}.stages")
    for key in set(row) & {"name", "changes", "own"}:  # fields of config.Variant that are no settings
        raise InputError("params.yaml", f"{where}.{key}: there is no such setting")
    parent = row.pop("like", None)
    if parent is None:
        return row
    if not isinstance(parent, str) or parent not in systems:
        raise InputError(
            "params.yaml", f"{where}.like: there is no row {shown(parent)}; {did_you_mean(str(parent), list(systems))}"
        )
    if parent in (name, *heirs):
        circle = " -> ".join((*heirs, name, parent))
        raise InputError("params.yaml", f"systems.{parent}.like: these rows are like each other in a circle: {circle}")
    inherited = resolve_row(parent, systems, (*heirs, name))
    return {**inherited, **row, **{key: {**inherited[key], **row[key]} for key in ROW_SECTIONS}}


def check_stages(stages: Any, where: str) -> None:
    """Raise InputError unless stages is a list of mappings that change only what may differ between stages."""
    if not isinstance(stages, list):
        raise InputError("params.yaml", f"{where}: expected a list of stages, got {shown(stages)}")
    for number, stage in enumerate(stages):
        mapping(stage, f"{where}.{number}")
        for section in ("loss", "train"):
            for key in mapping(stage.get(section, {}), f"{where}.{number}.{section}"):
                if (section, key) in FIXED_IN_STAGES:
                    name = f"{where}.{number}.{section}.{key}"
                    raise InputError("params.yaml", f"{name}: a stage can't change this; set it for the row")


def dotted_names(values: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted names of all settings in a row's sections and stages."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if path == ("stages",) else None
    if items is None or path[-1:] in [("backbone_options",), ("local_backbone_options",)]:
        yield ".".join(path)
        return
    for key, value in items:
        yield from dotted_names(value, (*path, str(key)))


def row_faults(settings: Any) -> Iterator[str]:
    """The faults of all rows; one that a row inherits is reported for its parent only."""
    faults: dict[str, list[str]] = {name: [] for name in settings.systems}
    for name in faults:
        try:
            settings.variant(name)
        except InputError as error:
            start = f"systems.{name}"  # other faults are a parent's, and reported there
            faults[name] = [f.removeprefix(start) for f in error.faults if re.match(rf"{re.escape(start)}[.:]", f)]
    for name, sentences in faults.items():
        parent = settings.systems[name].get("like") if isinstance(settings.systems[name], dict) else None
        inherited = [] if parent == name else faults.get(str(parent), [])
        yield from (f"systems.{name}{sentence}" for sentence in sentences if sentence not in inherited)


def general_faults(settings: Any) -> Iterator[str]:
    """Faults that no setting has by itself."""
    if not settings.variants:
        yield "variants: the list is empty; name at least one key of systems"
    for name in settings.systems:
        if not NAME.fullmatch(name):
            yield f"systems: {shown(name)} can't name a row: use letters, digits, _ . + -, at most 64 characters"
    for name in dict.fromkeys(settings.variants):
        if name not in settings.systems:
            yield f"variants: there is no row {name!r}; {did_you_mean(name, list(settings.systems))}"
        if settings.variants.count(name) > 1:
            yield f"variants: {name!r} is listed twice"
    if settings.index.variant not in ("", *settings.variants):
        advice = did_you_mean(settings.index.variant, settings.variants)
        yield f"index.variant: {settings.index.variant!r} is not one of variants; {advice}"
    for name in settings.index.columns:
        if RESERVED.fullmatch(name) or not PLAIN.fullmatch(name):
            advice = "letters, digits and _, and no name of the index's own columns; rename the column"
            yield f"index.columns: a condition can't name {shown(name)}: use {advice}"
    if settings.split.valid + settings.split.test >= 1:
        yield "split: valid + test must leave something to train on (less than 1)"
