"""The notes on settings without effect, and on settings that reach some rows only."""

import copy
import re
import shutil
import subprocess
from dataclasses import asdict

import pytest
import yaml

from m3lib import config
from m3lib.pipeline import changes, effects
from tiny import ROOT
from tiny import VALUES as COMMITTED
from workspace import ENVIRONMENT


def without_search(values: dict) -> dict:
    """params.yaml without what the search chose for rows; asen_pp and m3 have rates of their own."""
    values = copy.deepcopy(values)
    for row in values["systems"].values():
        for section, keys in {"loss": ("margin", "hardness", "contrast_temperature"), "train": ("lr",)}.items():
            for key in keys:
                row.get(section, {}).pop(key, None)
    values["systems"]["asen_pp"]["train"] = {"lr": 0.003}
    values["systems"]["m3"]["train"] = {"lr": 0.007}
    return values


VALUES = without_search(COMMITTED)
SETTINGS = config.parse(VALUES)
ROWS = VALUES["systems"]
ASEN_PP = f"systems.asen_pp.train.lr = {ROWS['asen_pp']['train']['lr']} (asen_pp)"
M3 = f"systems.m3.train.lr = {ROWS['m3']['train']['lr']} (m3_a, m3_c, m3)"
NO_EFFECT = "changed without effect, since"


def changed(*settings: str, values: dict = VALUES) -> dict:
    """params.yaml with settings as after `dvc exp run -S`: `a.b=value`; numbers are places in lists."""
    values = copy.deepcopy(values)
    for setting in settings:
        name, _, text = setting.partition("=")
        *parents, key = [int(part) if part.isdigit() else part for part in name.split(".")]
        inside = values
        for parent in parents:
            inside = inside[parent] if isinstance(parent, int) else inside.setdefault(parent, {})
        inside[key] = yaml.safe_load(text)
    return values


def new_notes(*settings: str) -> list[str]:
    """The notes on these changes, without those on the general settings that rows always replace."""
    found = effects.notes(changed(*settings), VALUES)
    return [note for note in found if not note.startswith("rows replace")]


def test_settings_that_rows_replace_are_one_note():
    (note,) = effects.notes(VALUES, VALUES)
    assert note == (
        "rows replace these general settings: model.weights (in systems.frozen); "
        "model.attention_batch_norm (in systems.asen_pp); loss.pairs (in systems.duet); "
        "train.lr (in systems.asen_pp, systems.m3); "
        "train.crop, train.jitter, train.keep_originals (in systems.modc.stages.2)"
    )
    assert effects.notes(VALUES) == [note]  # without git
    assert effects.notes(changed("variants=[classifier, asen_v2]"), VALUES) == []


def test_the_committed_settings_give_one_note():
    (note,) = effects.notes(COMMITTED, COMMITTED)
    assert note.startswith("rows replace these general settings: model.weights (in systems.frozen); ")


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (
            ["train.lr=0.001"],
            "train.lr = 0.001 reaches frozen, classifier, classifier_bce, asen, asen_v2, modc, duet only; "
            f"rows set their own: {ASEN_PP}, {M3}",
        ),
        (["train.lr=0.001", "variants=[asen_pp]"], f"train.lr: {NO_EFFECT} rows set their own: {ASEN_PP}"),
        (
            ["train.crop=0.7"],
            "train.crop = 0.7 does not reach all stages; rows set their own: systems.modc.stages.2.train.crop = 0.5 "
            "(modc)",
        ),
        (
            ["systems.m3.train.lr=0.032", "systems.m3_c.train.lr=0.008"],
            "systems.m3.train.lr = 0.032 reaches m3_a, m3 only; rows set their own: systems.m3_c.train.lr = 0.008 "
            "(m3_c)",
        ),
        (
            ["systems.modc.train.jitter=0.3"],
            "systems.modc.train.jitter = 0.3 does not reach all stages; rows set their own: "
            "systems.modc.stages.2.train.jitter = 0.2 (modc)",
        ),
        (["model.beta=0.3", "variants=[m3]"], f"model.beta: {NO_EFFECT} no row has a network that reads it (asen_pp)"),
        (
            ["loss.hardness=2", "variants=[classifier]"],
            f"loss.hardness: {NO_EFFECT} no row has a loss that reads it "
            "(asen_triplet, asen_pp_local, modc_pseudo, m3_instance, m3_cluster)",
        ),
        (
            ["loss.pseudo_margin=0.1", "variants=[m3]"],
            f"loss.pseudo_margin: {NO_EFFECT} no row has a loss that reads it (modc_pseudo)",
        ),
        (
            ["loss.hardness=2", "variants=[asen]", "train.sampler=asen"],
            f"loss.hardness: {NO_EFFECT} train.sampler or loss.pairs leaves no pair to draw",
        ),
        (
            ["loss.contrast_temperature=0.2", "variants=[asen, m3]"],
            f"loss.contrast_temperature: {NO_EFFECT} loss.pairs is drawn",
        ),
        (["loss.margin=0.3", "loss.pairs=all", "variants=[asen]"], f"loss.margin: {NO_EFFECT} loss.pairs is all"),
        (
            ["loss.asen_triplet=2", "variants=[asen]"],
            f"loss.asen_triplet: {NO_EFFECT} rows set their own: systems.asen.loss.asen_triplet = 1 (asen)",
        ),
        (["csv.min_images=5", "csv.rare=fold"], f"csv.min_images, csv.rare: {NO_EFFECT} source is wardrobe"),
        (["source=csv", "wardrobe.seed=3"], f"wardrobe.seed: {NO_EFFECT} source is csv"),
        (["benchmark.fraction=0.5"], f"benchmark.fraction: {NO_EFFECT} source is wardrobe"),
        (
            ["source=csv", "csv.split_column=part", "split.test=0.3"],
            f"split.test: {NO_EFFECT} csv.split_column gives the splits",
        ),
        (["images.fit=pad"], f"images.fit: {NO_EFFECT} the drawn images are square"),
        (["preset=mini"], f"preset: {NO_EFFECT} this run does not read what the preset sets"),
        (["presets.mini.benchmark.fraction=0.1"], f"presets.mini.benchmark.fraction: {NO_EFFECT} preset is none"),
        (["sources.csv.images.width=80"], f"sources.csv.images.width: {NO_EFFECT} source is wardrobe"),
        (["sources.csv.umap.points=80"], f"sources.csv.umap.points: {NO_EFFECT} source is wardrobe"),
        (["sources.wardrobe.images.fit=pad"], f"sources.wardrobe.images.fit: {NO_EFFECT} the drawn images are square"),
        (
            ["sources.wardrobe.umap.points=80"],
            f"sources.wardrobe.umap.points: {NO_EFFECT} umap.points is 300, not auto",
        ),
        (
            ["train.epochs=9", "sources.wardrobe.train.epochs=5"],
            f"sources.wardrobe.train.epochs: {NO_EFFECT} train.epochs is 9, not auto",
        ),
        (["source=csv", "images.width=72"], f"images.width: {NO_EFFECT} sources.csv has the same value"),
        (
            ["umap.points=auto", "sources.wardrobe.umap.points=300"],
            f"umap.points: {NO_EFFECT} sources.wardrobe has the same value",
        ),
        (
            ["preset=published", "sources.wardrobe.images.height=64"],
            f"sources.wardrobe.images.height: {NO_EFFECT} the preset published replaces it: "
            "use -S presets.published.images.height=...",
        ),
        (["systems.m3_loss1.train.lr=0.1"], f"systems.m3_loss1.train.lr: {NO_EFFECT} m3_loss1 is not in variants"),
        (["systems.toy={like: m3}"], f"systems.toy: {NO_EFFECT} toy is not in variants"),
        (["train.step_epochs=2"], f"train.step_epochs: {NO_EFFECT} no row has train.schedule step"),
        (["train.warmup=0.2", "train.schedule=step"], f"train.warmup: {NO_EFFECT} no row has train.schedule cosine"),
        (
            ["model.local_weights=x.safetensors"],
            f"model.local_weights: {NO_EFFECT} model.local_from_global copies the global branch",
        ),
        (
            ["model.pretrained=false", "model.weights=x.safetensors", "variants=[m3]"],
            f"model.pretrained: {NO_EFFECT} model.weights is set",
        ),
        (["model.trainable=heads", "variants=[frozen]"], f"model.trainable: {NO_EFFECT} the whole backbone is frozen"),
        (
            ["model.trainable=all", "model.cache_frozen=false", "variants=[m3]"],
            f"model.cache_frozen: {NO_EFFECT} no block is frozen",
        ),
        (
            ["preset=published", "images.height=160"],
            f"images.height: {NO_EFFECT} the preset published replaces it: use -S presets.published.images.height=...",
        ),
        (  # its row lists no train.lr yet
            ["preset=published", "systems.m3.train.lr=0.5"],
            f"systems.m3.train.lr: {NO_EFFECT} the preset published replaces it: "
            "use -S +presets.published.systems.m3.train.lr=...",
        ),
    ],
)
def test_a_change_without_effect_or_for_some_rows_is_one_note(settings, note):
    assert new_notes(*settings) == [note]


@pytest.mark.parametrize(
    "settings",
    [
        ["systems.m3.train.lr=0.5"],
        ["systems.modc.stages.2.train.crop=0.7"],
        ["preset=published", "presets.published.systems.m3.train.lr=0.5"],
        ["preset=published", "presets.published.images.height=160"],
        ["source=csv", "csv.min_images=5", "split.test=0.3"],
        ["train.schedule=step", "train.step_epochs=2"],
        ["train.sampler=asen", "train.triplets=5"],
        ["systems.toy={like: m3}", "variants=[toy]"],
        ["systems.m3_loss1.train.lr=0.1", "variants=[m3_loss1]"],
        ["model.class_embedding=32", "train.weight_decay=0.02", "umap.points=60", "index.kind=exact", "seed=3"],
        ["devices=2"],
        ["images.fit=pad", "images.height=64"],
        ["images.width=64"],
        ["source=csv", "images.width=96"],
        ["source=csv", "sources.csv.images.width=80", "sources.csv.train.epochs=7"],
        ["umap.points=auto", "sources.wardrobe.umap.points=80"],
        ["model.backbone_options={channels: [8, 8, 16, 16]}"],
    ],
)
def test_a_change_that_reaches_everything_is_no_note(settings):
    assert new_notes(*settings) == []


def test_a_block_whose_general_setting_is_not_auto_is_a_note_unless_a_change_replaced_the_auto():
    committed = changed("images.width=64", "sources.wardrobe.umap.points=80", "sources.csv.train.lr=0.5")
    note = "sources.wardrobe sets images.width, umap.points without effect, since the general settings are not auto"
    for before in (committed, None):
        assert effects.notes(committed, before)[:-1] == [note]
    assert note not in effects.notes(changed("images.width=80", values=committed), VALUES)
    back = changed("images.width=auto", values=committed)
    assert effects.notes(back, committed)[:-1] == [note.replace("images.width, ", "")]


def test_a_new_block_is_as_many_changes_as_it_has_settings():
    values = changed("sources.wardrobe={images: {height: 32, width: 32, fit: crop}, train: {epochs: 4}, split: {}}")
    before = changed("images.height=96", "images.width=96", "images.fit=crop", "train.epochs=4")
    del before["sources"]["wardrobe"]
    assert {path for path in changes.changes(before, values) if path[0] == "sources"} == {
        ("sources", "wardrobe", "images", "height"),
        ("sources", "wardrobe", "images", "width"),
        ("sources", "wardrobe", "images", "fit"),
        ("sources", "wardrobe", "train", "epochs"),
    }


def test_the_commands_that_we_teach_have_an_effect():
    """Each -S of README and of sweep.ipynb reaches every row that its setting names; start weights miss `frozen`."""
    texts = [(ROOT / "README.md").read_text(), (ROOT / "notebooks" / "sweep.ipynb").read_text()]
    commands = [line for text in texts for line in re.findall(r"dvc exp run .*", text) if " -S " in line]
    assert len(commands) >= 6
    for command in commands:
        found = re.findall(r"-S (?:'([^']*)'|([^ `\"]*))", command)
        settings = [(quoted or plain).lstrip("+").partition(",0")[0] for quoted, plain in found]
        notes = [note for note in new_notes(*settings) if "set their own: systems.frozen.model.weights" not in note]
        assert notes == [], command
    assert new_notes("systems.m3_c.train.lr=0.008") == []


def other(value: object) -> object:
    """Another value of the same kind."""
    return {bool: lambda: not value, float: lambda: value / 2 + 0.01, int: lambda: value - 1 or 2}[type(value)]()


def test_every_number_of_the_general_settings_changes_a_row_or_gives_a_note():
    """The reference: the resolved settings of all rows, in which a row keeps only what its network reads."""
    silent, without = set(), set()
    for section in ("model", "train"):
        for key, value in asdict(getattr(SETTINGS, section)).items():
            if not isinstance(value, bool | int | float):
                continue
            values = changed(f"{section}.{key}={other(value)}")
            run = effects.Run(values)
            before = {name: SETTINGS.variant(name).resolved() for name in SETTINGS.variants}
            if {name: run.settings.variant(name).resolved() for name in before} == before:
                silent.add(f"{section}.{key}")
            notes = effects.notes(values, VALUES)
            without |= {f"{section}.{key}"} if any(note.startswith(f"{section}.{key}: ") for note in notes) else set()
    assert silent <= without
    assert without - silent == {"train.triplets", "train.step_epochs", "train.step_factor"}


def test_the_last_commit_is_what_changes_are_compared_with(tmp_path):
    assert changes.committed_values(tmp_path) is None  # no repository
    shutil.copy(ROOT / "params.yaml", tmp_path)

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)

    git("init", "--quiet")
    assert changes.committed_values(tmp_path) is None  # no commit
    git("add", "params.yaml")
    git("commit", "--quiet", "--message", "x")
    (tmp_path / "params.yaml").write_text(yaml.dump(changed("train.lr=0.5")))
    assert changes.committed_values(tmp_path) == COMMITTED
    (tmp_path / "params.yaml").write_text("a: &b {}\nc: *b\n")  # DVC would expand it
    git("commit", "--quiet", "--all", "--message", "x")
    assert changes.committed_values(tmp_path) is None


def test_without_git_nothing_is_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert changes.committed_values(ROOT) is None


@pytest.mark.parametrize("committed", [{}, {"systems": [], "train": {"lr": {}}, "presets": {3: 4}}, {"x": None}])
def test_any_committed_file_can_be_compared_with(committed):
    assert effects.notes(VALUES, committed)
