"""Check the settings and the source before anything slow starts: `python -m m3lib.pipeline.check_inputs`.

The first stage of the pipeline runs every time and writes what the other stages depend on: data/inputs.json, a
fingerprint of the source, and data/rows/<row>.json, the resolved settings of each row with digests of the code of its
system and of the weight files that it starts from; and data/backbones.json, every backbone that a row needs. A stage
reruns when its file has other content.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from m3lib import prepare
from m3lib.compatibility import COMMON_SETTINGS, declaration, registry
from m3lib.config import Settings, Variant, data_path, find_root, load
from m3lib.data.code import imported_files, relative_names
from m3lib.data.files import atomic, digest
from m3lib.errors import InputError, exit_status, printable, shown
from m3lib.layers import origins
from m3lib.pipeline import effects, environment
from m3lib.pipeline.changes import committed_values
from m3lib.prepare import contents, public
from m3lib.prepare.catalogue import assemble
from m3lib.prepare.labels import label
from m3lib.prepare.table import find_column, open_table
from m3lib.taxonomy import Taxonomy, nearest
from m3lib.validation import read_yaml

LABEL_FILES = (".txt", ".csv")


def fingerprint(settings: Settings) -> dict[str, str | int]:
    """Digests of the source: of the table's bytes, and of the photos' names and bytes.

    Raises InputError if the source is not complete, or if it or a row's settings can't be used with its labels.
    """
    columns = settings.index.columns if settings.index.engine == "lancedb" else []
    if columns and settings.source != "csv":
        problem = f"the source {settings.source} has no table to take them from"
        raise InputError(f"params.yaml, index.columns: {problem}; set it to []")
    if settings.source in prepare.DATASETS:
        return benchmark_fingerprint(settings)
    if settings.source != "csv":
        check_held_out(settings, prepare.taxonomy_of(settings))
        return {"source": settings.source}
    table = open_table(settings.csv, settings.images.max_unreadable)
    for name in columns:
        find_column(table.cells, name, "index.columns", table.path)
    labels = label(table, settings.csv)
    check_held_out(settings, labels.taxonomy)
    prepare.check(assemble(table, labels, table.names, settings.csv), settings)
    for note in (*table.notes, *labels.notes):
        print(f"note: {printable(note)}")
    photos = photos_digest(table.path.parent, table.names)
    return {"source": "csv", "table": digest(table.path), "photos": photos, "rows": len(table.names)}


def check_held_out(settings: Settings, taxonomy: Taxonomy) -> None:
    """Raise InputError for every class of a row's train.held_out that the source does not have."""
    faults = []
    for row in map(settings.variant, settings.variants):
        name = f"systems.{row.name}.train.held_out" if "train.held_out" in row.own else "train.held_out"
        for class_ in row.train.held_out:
            try:
                taxonomy.class_ids(class_)
            except InputError as error:
                faults.append(f"{name}: {class_!r} is no `attribute: class` of the source: {error}")
    if faults:
        raise InputError("params.yaml", *dict.fromkeys(faults))


def photos_digest(folder: Path, names: Sequence[str]) -> str:
    """One digest of photos' names and bytes, in this order. Unchanged photos are not read again, as `contents` says."""
    pairs = zip(names, contents.digests(folder, names), strict=True)
    return digest(*(json.dumps(pair) for pair in pairs))


def benchmark_fingerprint(settings: Settings) -> dict[str, str | int]:
    """Digests of a public benchmark: of its label files, and of its photos' names and bytes."""
    dataset = prepare.DATASETS[settings.source]
    folder = public.folder_of(dataset.name, settings.benchmark)
    report, complete = public.survey(dataset, folder)
    if complete and dataset.quick:
        prepare.read(settings)
    print(report)
    if not complete:
        raise InputError(f"{dataset.name} is not complete in {folder}; the missing files are listed above")
    check_held_out(settings, prepare.taxonomy_of(settings))
    labels, photos = [], []
    for path in walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix in LABEL_FILES:
            labels.append(json.dumps([name, digest(path)]))
        else:
            photos.append(name)
    summary = {"labels": digest(*labels), "photos": photos_digest(folder, photos), "rows": len(photos)}
    return {"source": dataset.name} | summary


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield every file under a folder, in the same order on every machine.

    Links to folders are followed, except one that leads back to a folder above it.
    """
    above = (*above, folder.resolve())
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if Path(entry.path).resolve() not in above:
                yield from walk(Path(entry.path), above)
        elif entry.is_file():
            yield Path(entry.path)


def check_backbones(settings: Settings, root: Path) -> None:
    """Raise InputError for a backbone that timm does not have.

    Importing timm takes seconds, so its list of names is cached in data/work and renewed for a name that it lacks.
    """
    models = [settings.variant(name).model for name in settings.variants]
    names = {name.partition(".")[0] for model in models for name in (model.backbone, model.local_backbone) if name}
    cache = root / "data" / "work" / "backbones.txt"
    backbones = cache.read_text(errors="replace").split() if cache.is_file() else []
    if not names <= set(backbones):
        import timm

        backbones = timm.list_models()
        write(cache, "\n".join(backbones) + "\n")
    for name in sorted(names):
        nearest(name, backbones, "backbone in params.yaml (model.backbone takes any timm model)")


def row_file(variant: Variant) -> dict:
    """Everything besides data and shared code that decides a row's training: settings, system code, start weights."""
    module = registry()[variant.network].partition(".")[0]
    code = [path for path in imported_files(f"m3lib.systems.{module}") if path.parent.name == "systems"]
    return {
        "settings": variant.resolved(),
        "code": {name: digest(path) for name, path in zip(relative_names(code), code, strict=True)},
        "weights": {name: weight_digest(name) for name in (variant.model.weights, variant.model.local_weights) if name},
    }


def distinct_backbones(settings: Settings) -> dict[str, dict]:
    """The settings of every backbone, local ones included, by the first row that has them."""
    found: dict[str, dict] = {}
    for row in map(settings.variant, settings.variants):
        local = {key for key in declaration(row.network).settings if key.startswith("local_")}
        values = {key: value for key, value in vars(row.model).items() if key in COMMON_SETTINGS | local}
        values["whole"] = row.network == "frozen"
        if values not in found.values():
            found[row.name] = values
    return found


def weight_digest(name: str) -> str:
    """The digest of a weight file. Raises InputError if it is missing or not safetensors: a pickle can execute code."""
    path = data_path(name)
    try:
        with path.open("rb") as file:  # the name, the size and the start of the header; torch reads the rest later
            length, start = int.from_bytes(file.read(8), "little"), file.read(1)
        if path.suffix != ".safetensors" or start != b"{" or length > path.stat().st_size - 8:
            raise InputError(f"params.yaml, model.weights: {name} is not a safetensors file; convert it to one")
        return digest(path)
    except OSError as error:
        raise InputError(f"params.yaml, model.weights: {error.filename} can't be read ({error.strerror})") from None


def write(path: Path, content: str | dict) -> None:
    with atomic(path) as temporary:
        temporary.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


def show_benchmark(name: str) -> int:
    """Print which files of a public benchmark exist, which are missing and where to get them; 1 if some are missing."""
    if not name:
        raise InputError(f"name a public benchmark: make data SOURCE={' | '.join(prepare.DATASETS)}")
    settings = load(find_root() / "params.yaml")
    dataset = prepare.DATASETS[nearest(name, list(prepare.DATASETS), "public benchmark")]
    report, complete = public.survey(dataset, public.folder_of(dataset.name, settings.benchmark))
    if complete:
        prepare.read(replace(settings, source=dataset.name))  # raises InputError for wrong labels and missing photos
    print(report)
    return 0 if complete else 1


def set_by(values: dict, settings: Settings) -> Iterator[str]:
    """A line for each place that decides settings for which the source or the preset has a value."""
    by_origin = defaultdict(list)
    for name, value, origin in origins(values, settings):
        by_origin[origin].append(f"{name} {shown(value)}")
    for origin, names in by_origin.items():
        yield f"set by {origin}: {', '.join(names)}"


def check_pipeline() -> None:
    """Check everything that can be checked quickly, then write data/inputs.json and data/rows."""
    root = find_root()
    settings = load(root / "params.yaml")
    check_backbones(settings, root)
    rows = {name: row_file(settings.variant(name)) for name in settings.variants}
    source = fingerprint(settings)
    for path in (root / "data" / "rows").glob("*.json"):
        if path.stem not in rows:
            path.unlink()
    backbones = list(distinct_backbones(settings).values())
    weights = {name: digest_ for row in rows.values() for name, digest_ in row["weights"].items()}
    sides = [settings.images.height, settings.images.width]
    write(root / "data" / "backbones.json", {"backbones": backbones, "weights": weights, "images": sides})
    for name, content in rows.items():
        write(root / "data" / "rows" / f"{name}.json", content)
    write(root / "data" / "inputs.json", source)
    folder = environment.experiments_note(root)
    values = read_yaml(root / "params.yaml")
    for line in set_by(values, settings):
        print(line)
    for note in [*effects.notes(values, committed_values(root)), *[folder] * bool(folder)]:
        print(f"note: {printable(note)}")
    print(f"source {source['source']}" + (f", {source['rows']} photos" if "rows" in source else ""))


def main(arguments: Sequence[str] = ()) -> int:
    """Check the public benchmark that is named, or the pipeline; 1 and one sentence if something is wrong."""
    return exit_status(lambda: show_benchmark(arguments[0]) if arguments else check_pipeline())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
