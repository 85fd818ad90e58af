"""YAML into frozen dataclasses: every key known and present, every value of its annotated type and within its bounds.

Whatever does not fit is an InputError of one sentence with the setting's dotted name.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from m3lib.errors import HUGE, InputError, shown
from m3lib.taxonomy import did_you_mean


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: float
    high: float = float("inf")


class Loader(yaml.SafeLoader):
    """Plain values only, no Python objects; of two equal keys PyYAML itself would take the last without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return node


def read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; restore it with `git checkout params.yaml`") from None
    except yaml.YAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        told = filter(None, (getattr(error, part, None) for part in ("context", "problem")))
        problem = ", ".join(told) or " ".join(str(error).split())
        raise InputError(f"{path}{line}: not valid YAML ({problem})") from None
    except Exception as error:  # a folder, no UTF-8, no date or number: PyYAML raises whatever its parts do
        raise InputError(f"{path} can't be read ({type(error).__name__}: {error})") from None


def check_aliases(values: Any) -> None:
    """Raise InputError where two settings are one mapping, by a YAML alias: DVC's -S changes the one through the other,
    or none of them, without a word. Merged, `{<<: *name}`, each is a mapping of its own."""
    seen: dict[int, str] = {}

    def walk(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not value:  # in an empty one there is nothing to change
            return
        if id(value) in seen:
            told = f"an alias of {seen[id(value)]}, which -S can't tell from it; merge it instead: {{<<: *its_name}}"
            raise InputError(f"params.yaml, {where}: {told}")
        seen[id(value)] = where
        for key, part in value.items():
            walk(part, f"{where}.{key}" if where else str(key))

    walk(values, "")


def mapping(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"params.yaml, {where}: expected a mapping of settings, got {shown(value)}")
    return value


def merge(section: Any, changes: Any, where: str) -> Any:
    checked = {field.name: getattr(section, field.name) for field in fields(section)} | mapping(changes, where)
    return build(type(section), checked, where)


def build(cls: type, values: Any, where: str) -> Any:
    """A dataclass from a mapping, every key known, present, and of the annotated type."""
    mapping(values, where or "top level")
    hints = get_type_hints(cls, include_extras=True)
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in hints:
            raise InputError(
                f"params.yaml, {prefix}{key}: there is no such setting; {did_you_mean(str(key), list(hints))}"
            )
    for key in hints:
        if key not in values:
            raise InputError(f"params.yaml, {prefix}{key}: the setting is missing")
    return cls(**{key: check(values[key], hint, f"{prefix}{key}") for key, hint in hints.items()})


def check(value: Any, hint: Any, where: str) -> Any:
    """The value, if it fits the annotation; an int passes where a float is asked."""
    if get_origin(hint) is tuple:  # made by the caller, not read
        return value
    if is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"params.yaml, {where}: expected one of {', '.join(get_args(hint))}, got {shown(value)}")
        return value
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < HUGE else math.inf
    if type(value) is not hint:
        advice = " (YAML reads 1e-4 as text: write 0.0001)" if hint is float and isinstance(value, str) else ""
        raise InputError(f"params.yaml, {where}: expected {hint.__name__}, got {shown(value)}{advice}")
    if hint is str and not value.isprintable():
        raise InputError(f"params.yaml, {where}: {shown(value)} holds a character that can't be printed")
    if bounds and not (bounds.low <= value <= bounds.high and abs(value) < HUGE):
        raise InputError(
            f"params.yaml, {where}: must lie between {bounds.low:g} and {bounds.high:g}, got {shown(value)}"
        )
    return value
