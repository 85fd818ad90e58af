"""What differs between params.yaml and its last commit.

A path is the keys of a setting in params.yaml, such as ("systems", "m3", "train", "lr").
"""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3lib.errors import InputError
from m3lib.validation import mapping, parse_yaml

Keys = tuple[str, ...]
MISSING = object()


def committed_values(root: Path) -> dict | None:
    """params.yaml in the last commit of a workspace; None without git, a commit or a readable file."""
    command = ["git", "show", "HEAD:./params.yaml"]
    try:
        text = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout.decode()
        return mapping(parse_yaml(text, "params.yaml"), "top level")
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError, InputError):
        return None


def dotted(path: Keys) -> str:
    return ".".join(map(str, path))


def lookup(values: Any, path: Keys) -> Any:
    """The value at a path, or MISSING."""
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return MISSING
        values = values[key]
    return values


def with_value(values: dict, path: Keys, source: dict) -> dict:
    """A copy of values in which one path has the value that it has in a source, or is removed if it has none."""
    changed, value = copy.deepcopy(values), lookup(source, path)
    inside = changed
    for key in path[:-1]:
        inside = inside.setdefault(key, {})
    inside.pop(path[-1], None)
    if value is not MISSING:
        inside[path[-1]] = value
    return changed


def changes(old: dict, new: dict, path: Keys = ()) -> Iterator[Keys]:
    """The paths of all values that differ; a row, preset or list that is new, removed or changed counts as one."""
    for key in {**old, **new}:
        pair, here = [values.get(key, MISSING) for values in (old, new)], (*path, key)
        if pair[0] == pair[1] and isinstance(pair[0], bool) == isinstance(pair[1], bool):
            continue
        whole = MISSING in pair and len(here) == 2 and here[0] != "sources"
        if whole or str(key).endswith("backbone_options") or not all(v is MISSING or isinstance(v, dict) for v in pair):
            yield here
        else:
            yield from changes(*({} if value is MISSING else value for value in pair), here)
