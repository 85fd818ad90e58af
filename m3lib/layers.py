"""What lies over and under the general settings of params.yaml: the chosen preset, and what `auto` means by source."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

from m3lib.errors import InputError, shown
from m3lib.taxonomy import did_you_mean
from m3lib.validation import mapping, validate

AUTO = "auto"
SOURCE_SECTIONS = ("images", "split", "model", "loss", "train", "umap")
PRESET_SECTIONS = ("wardrobe", "csv", "benchmark", *SOURCE_SECTIONS, "systems")


def with_preset(values: dict) -> dict:
    """Lay the chosen preset over the settings; it replaces a row of `systems` as a unit.

    `variants`, `seed` and `threads` stay out of presets: the pipeline's stages are named and cached by them.
    """
    presets, name = values.get("presets"), values.get("preset")
    if not isinstance(presets, dict) or not isinstance(name, str):
        return values  # `validate` describes the fault
    if name not in presets:
        raise InputError("params.yaml", f"preset: there is no preset {name!r}; {did_you_mean(name, list(presets))}")
    where = f"presets.{name}"
    changed = dict(values)
    for section, changes in mapping(presets[name], where).items():
        if section not in PRESET_SECTIONS:
            allowed = ", ".join(PRESET_SECTIONS)
            raise InputError("params.yaml", f"{where}.{section}: a preset may set {allowed}, not this")
        changed[section] = mapping(values.get(section), section) | mapping(changes, f"{where}.{section}")
    return changed


def with_source(values: dict, settings: type) -> dict:
    """Replace each general setting that is `auto` by what the block of the source, `sources.<source>`, has for it.

    settings: `config.Settings`, whose types say what a block may hold. Raises InputError for a wrong source, with every
    fault of the blocks, or with each `auto` for which the block has no value.
    """
    blocks, source = mapping(values.get("sources"), "sources"), values.get("source")
    hints = get_type_hints(settings)
    types = {name: get_type_hints(hints[name], include_extras=True) for name in SOURCE_SECTIONS}
    if source not in get_args(hints["source"]):
        names = ", ".join(get_args(hints["source"]))
        raise InputError("params.yaml", f"source: expected one of {names}, got {shown(source)}")
    if faults := list(block_faults(blocks, types, get_args(hints["source"]))):
        raise InputError("params.yaml", *faults)
    block, resolved = blocks.get(source, {}), dict(values)
    for section in SOURCE_SECTIONS:
        general = values.get(section)
        if not isinstance(general, dict):
            continue  # `validate` describes the fault
        unset = [key for key, type_ in types[section].items() if general.get(key) == AUTO and not has_own_auto(type_)]
        given = block.get(section, {})
        resolved[section] = general | {key: given[key] for key in unset if key in given}
        for name in (f"{section}.{key}" for key in unset if key not in given):
            faults.append(f"{name}: auto needs a value in sources.{source}; add {name} there, or replace auto")
    if faults:
        raise InputError("params.yaml", *faults)
    return resolved


def has_own_auto(type_: Any) -> bool:
    """Whether `auto` is one of a setting's own values, as of train.precision."""
    return AUTO in get_args(type_)


def block_faults(blocks: dict, types: dict[str, dict[str, Any]], names: tuple[str, ...]) -> Iterator[str]:
    """The faults of all blocks; types: of the settings that a block may set, by section; names: of the sources."""
    for source, block in blocks.items():
        where = f"sources.{source}"
        if source not in names:
            yield f"{where}: there is no such source; {did_you_mean(source, names)}"
        for section, settings in mapping(block, where).items():
            if section not in SOURCE_SECTIONS:
                yield f"{where}.{section}: a source may set {', '.join(SOURCE_SECTIONS)}, not this"
                continue
            for key, value in mapping(settings, f"{where}.{section}").items():
                yield from setting_faults(f"{where}.{section}.{key}", value, key, types[section])


def setting_faults(name: str, value: Any, key: str, types: dict[str, Any]) -> Iterator[str]:
    """The faults of one setting of a block; types: of the settings of its section."""
    if key not in types:
        yield f"{name}: there is no such setting; {did_you_mean(key, list(types))}"
    elif has_own_auto(types[key]):
        yield f"{name}: a source can't set this, since auto is one of its own values"
    else:
        try:
            validate(types[key], value, name)
        except InputError as error:
            yield from error.faults


def origins(values: dict, settings: Any, sections: Sequence[str] = PRESET_SECTIONS[:-1]) -> list[tuple[str, Any, str]]:
    """(setting, value, where it is set) of each general setting that the preset or the block of the source names.

    values: params.yaml; settings: the same as `config.Settings`. Where it is set: "presets.<preset>",
    "sources.<source>", or "params.yaml" for a general setting that is not `auto` and so replaces the block's.
    """
    preset, block = values["presets"][values["preset"]], values["sources"].get(values["source"], {})
    laid, found = with_preset(values), []
    for section in sections:
        in_preset, in_block = preset.get(section, {}), block.get(section, {})
        for key in {**in_block, **in_preset}:
            if key in in_block and laid[section][key] == AUTO:
                origin = f"sources.{values['source']}"
            else:
                origin = f"presets.{values['preset']}" if key in in_preset else "params.yaml"
            found.append((f"{section}.{key}", getattr(getattr(settings, section), key), origin))
    return found
