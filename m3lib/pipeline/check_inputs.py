"""Check the settings and the source: the pipeline's first stage, `python -m m3lib.pipeline.check_inputs`."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3lib import prepare
from m3lib.compatibility import check_variant
from m3lib.config import Settings, data_path, find_root, load
from m3lib.data.files import atomic, digest
from m3lib.errors import InputError
from m3lib.prepare import catalogue, public
from m3lib.taxonomy import nearest

LABEL_FILES = (".txt", ".csv")


def fingerprint(settings: Settings) -> dict[str, str | int]:
    """What the source consists of, told by the table's bytes and the photos' names and sizes in bytes alone.

    Reading every photo on each run would take too long, and a time stamp differs in every copy.
    """
    if settings.source in prepare.DATASETS:
        return of_download(settings)
    if settings.source != "csv":
        return {"source": settings.source}
    table, names = prepare.open_catalogue(settings.csv)
    catalogue.choose_attributes(table, settings.csv)
    sizes = [json.dumps([name, file_size(table.path.parent / name)]) for name in names]
    return {"source": "csv", "table": digest(table.path), "photos": digest(*sizes), "rows": len(names)}


def of_download(settings: Settings) -> dict[str, str | int]:
    """Of a public benchmark: the bytes of its label files, and the names and sizes of all else in its folder."""
    dataset = prepare.DATASETS[settings.source]
    folder = public.folder_of(dataset.name, settings.benchmark)
    report, complete = public.survey(dataset, folder)
    print(report)
    if not complete:
        raise InputError(f"{dataset.name} is not complete in {folder}; what is missing stands above")
    labels, photos = [], []
    for path, size in walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix in LABEL_FILES:
            labels.append(json.dumps([name, digest(path)]))
        else:
            photos.append(json.dumps([name, size]))
    return {"source": dataset.name, "labels": digest(*labels), "photos": digest(*photos), "rows": len(photos)}


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, int]]:
    """Every file under a folder and its size in bytes, in one order on every machine.

    Links to folders are followed, but for one that leads back to a folder above it.
    """
    above = (*above, folder.resolve())
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if Path(entry.path).resolve() not in above:
                yield from walk(Path(entry.path), above)
        elif entry.is_file():
            yield Path(entry.path), entry.stat().st_size


def file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def check_backbones(settings: Settings, root: Path) -> None:
    """Raise InputError for a backbone that timm does not know, before anything slow starts.

    Importing timm takes seconds, so its list of names is kept in data/work and renewed only for a name that it lacks.
    """
    models = [settings.variant(name).model for name in settings.variants]
    names = {name.partition(".")[0] for model in models for name in (model.backbone, model.local_backbone)}
    kept = root / "data" / "work" / "backbones.txt"
    known = kept.read_text(errors="replace").split() if kept.is_file() else []
    if not names <= set(known):
        import timm

        known = timm.list_models()
        with atomic(kept) as temporary:
            temporary.write_bytes(("\n".join(known) + "\n").encode())
    for name in sorted(names):
        nearest(name, known, "backbone in params.yaml (model.backbone takes any timm model)")


def weight_files(settings: Settings) -> dict[str, str]:
    """The weight files that the variants start from, by the name in params.yaml, and a digest of each.

    Raises InputError for one that is missing or no safetensors file: a pickle would run what stands in it.
    """
    models = [settings.variant(name).model for name in settings.variants]
    names = sorted({name for model in models for name in (model.weights, model.local_weights) if name})
    try:
        for name in names:
            if not is_safetensors(data_path(name)):
                raise InputError(f"params.yaml, model.weights: {name} is no safetensors file; convert it to one")
        return {name: digest(data_path(name)) for name in names}
    except OSError as error:
        raise InputError(f"params.yaml, model.weights: {error.filename} can't be read ({error.strerror})") from None


def is_safetensors(path: Path) -> bool:
    """By its name, its size, and the start of its header; torch, imported late, reads the rest."""
    with path.open("rb") as file:
        length, first = int.from_bytes(file.read(8), "little"), file.read(1)
    return path.suffix == ".safetensors" and first == b"{" and length <= path.stat().st_size - 8


def write_if_changed(path: Path, values: dict) -> bool:
    """Whether the file said something else, or was not there."""
    text = (json.dumps(values, indent=1) + "\n").encode()
    if path.is_file() and path.read_bytes() == text:
        return False
    with atomic(path) as temporary:
        temporary.write_bytes(text)
    return True


def look(name: str) -> int:
    """Say what of a public benchmark is there, what is missing, and where it is had; 1 where it can't be read yet."""
    settings = load(find_root() / "params.yaml")
    dataset = prepare.DATASETS[nearest(name, list(prepare.DATASETS), "public benchmark")]
    report, complete = public.survey(dataset, public.folder_of(dataset.name, settings.benchmark))
    print(report)
    return 0 if complete else 1


def main(arguments: Sequence[str] = ()) -> int:
    """Look at the public benchmark that is named; without a name, check everything for the pipeline.

    Write data/inputs.json, on which the pipeline's first notebook depends, unless it says the same already.
    data/weights.json does the same for the trainings.
    """
    try:
        if arguments:
            return look(arguments[0])
        root = find_root()
        settings = load(root / "params.yaml")
        for name in settings.variants:
            check_variant(settings.variant(name))
        check_backbones(settings, root)
        weights, found = weight_files(settings), fingerprint(settings)
        write_if_changed(root / "data" / "weights.json", weights)
        changed = write_if_changed(root / "data" / "inputs.json", found)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'data'}: {error.strerror or error}", file=sys.stderr)
        return 1
    counted = f", {found['rows']} photos" if "rows" in found else ""
    print(f"source {found['source']}{counted}: {'changed' if changed else 'as before'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
