"""Stored outputs of frozen blocks: the same training as from pixels, shared by rows, renewed by any change."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3lib.config import Variant
from m3lib.data import batches
from m3lib.errors import InputError
from m3lib.retrieval.embeddings import KINDS
from m3lib.systems import build
from m3lib.training import activations, inference
from m3lib.training.run import fit
from m3lib.training.trainer import Trainer
from stripes import PREPARED
from tiny import make_variant

TAXONOMY = PREPARED.taxonomy


def frozen_to(block: str, network: str = "m3", **changes: object) -> Variant:
    settings = {"batch": 8, "epochs": 2, "lr": 0.01, "flip": True, "shift": 0.0} | changes
    return make_variant(network, trainable=block, **settings)


def make(variant: Variant, seed: int = 0):
    torch.manual_seed(seed)
    return build(variant, TAXONOMY).eval()


@pytest.mark.parametrize("block", ["layer1", "layer3", "heads"])
def test_stored_outputs_are_those_of_every_image_and_its_mirror_image(tmp_path, block):
    variant = frozen_to(block)
    system = make(variant)
    outputs = activations.stored(system, PREPARED, variant, tmp_path)
    images = batches.to_tensor(PREPARED.images)
    for mirrored in (0, 1):
        expected = system.backbone.frozen_output(images.flip(3) if mirrored else images)
        torch.testing.assert_close(batches.to_tensor(outputs[:, mirrored]), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("network", ["classifier", "modc", "m3", "frozen"])
def test_training_from_stored_outputs_is_training_from_pixels(tmp_path, network):
    variant = frozen_to("layer2", network)
    curves = []
    for row in (variant, replace(variant, model=replace(variant.model, cache_frozen=False))):
        folder = tmp_path / str(row.model.cache_frozen)
        system, curve = fit(PREPARED, row, 4, 1, folder / "checkpoint.safetensors")
        curves.append((system, curve))
        assert (folder / "activations").exists() == row.model.cache_frozen
    (one, first), (other, second) = curves
    level = "valid_map_all"  # a ranking jumps where scores are nearly equal
    np.testing.assert_allclose(first[level], second[level], atol=0.02)
    np.testing.assert_allclose(first.drop(columns=level), second.drop(columns=level), rtol=2e-3)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=5e-3, msg=name)


def first_batch(trainer: Trainer, variant: Variant) -> tuple:
    return next(trainer.draw(variant.stages[0], torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_mirrored_if_any(tmp_path, flip):
    variant = frozen_to("layer2", flip=flip)
    trainer = Trainer(PREPARED, variant, 0, 1, cache=tmp_path)
    drawn = [mirrored for _, mirrored in trainer.draw(variant.stages[0], torch.Generator().manual_seed(0))]
    share = torch.cat(drawn).float().mean()
    assert 0.2 < share < 0.8 if flip else share == 0
    batch, mirrored = first_batch(trainer, variant)
    rows = trainer.rows[batch.index.numpy()]
    expected = [trainer.outputs[row, int(flip)] for row, flip in zip(rows, mirrored, strict=True)]
    assert torch.equal(trainer.read(batch, mirrored, variant.stages[0]), torch.from_numpy(np.stack(expected)))


@pytest.mark.parametrize("changes", [{"shift": 0.1}, {"crop": 0.8}, {"jitter": 0.1}])
def test_other_augmentations_read_pixels(tmp_path, changes):
    variant = frozen_to("layer2", **changes)
    trainer = Trainer(PREPARED, variant, 0, 1, cache=tmp_path)
    assert trainer.read(*first_batch(trainer, variant), variant.stages[0]).dtype == torch.uint8


def test_a_network_with_a_local_branch_reads_pixels_once_it_has_joined(tmp_path):
    variant = frozen_to("layer2", "asen_pp")
    trainer = Trainer(PREPARED, variant, 0, 1, cache=tmp_path)
    assert trainer.outputs is not None
    trainer.system.enter_stage(variant.stages[-1].loss)
    assert trainer.outputs is None


@pytest.mark.parametrize("network", ["m3", "duet"])
def test_embeddings_from_stored_outputs_are_those_from_pixels(tmp_path, network):
    variant = frozen_to("layer2", network)
    system, rows = make(variant), PREPARED.rows("test")
    outputs = activations.stored(system, PREPARED, variant, tmp_path)
    a, b = (inference.embed(system, PREPARED, rows, "fp32", source) for source in (outputs, None))
    for kind in KINDS if network == "m3" else ("attribute", "posterior"):
        torch.testing.assert_close(getattr(a, kind), getattr(b, kind), rtol=1e-2, atol=2e-3)


def test_a_file_is_used_again_until_something_that_decides_it_changes(tmp_path, monkeypatch):
    variant = frozen_to("layer2")
    system = make(variant)
    activations.stored(system, PREPARED, variant, tmp_path)
    monkeypatch.setattr(activations, "KEPT", 99)

    def files_after(system, variant=variant, prepared=PREPARED) -> int:
        activations.stored(system, prepared, variant, tmp_path)
        return len(list(tmp_path.glob("*.npy")))

    same_trunk = make(frozen_to("layer2", "asen_v2"))
    same_trunk.backbone.trunk.load_state_dict(system.backbone.trunk.state_dict())
    assert files_after(same_trunk) == 1
    with torch.no_grad():
        system.heads.weight.add_(1)
        next(system.backbone.trunk.get_submodule("layer2").parameters()).add_(1)
    assert files_after(system) == 1
    with torch.no_grad():
        next(system.backbone.trunk.get_submodule("layer1").parameters()).add_(1)
    assert files_after(system) == 2
    brighter = replace(PREPARED, images=np.minimum(PREPARED.images, 200))
    assert files_after(system, prepared=brighter) == 3
    smaller = frozen_to("layer2", input_scale=0.5)
    assert files_after(make(smaller), smaller) == 4
    deeper = frozen_to("layer3")
    assert files_after(make(deeper), deeper) == 5


def test_old_files_are_removed(tmp_path):
    for seed in range(5):
        variant = frozen_to("layer1")
        activations.stored(make(variant, seed), PREPARED, variant, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == activations.KEPT + 1


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    variant = frozen_to("layer2")
    system = make(variant)

    def interrupted(*_: object, **__: object) -> np.ndarray:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return np.zeros((1, 4, 4, 8), np.float16)

    calls: list[int] = []
    monkeypatch.setattr(activations, "frozen_output", interrupted)
    with pytest.raises(KeyboardInterrupt):
        activations.stored(system, PREPARED, variant, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_disk_without_room_is_one_sentence(tmp_path, monkeypatch):
    variant = frozen_to("layer2")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match=r"outputs of the backbone's frozen blocks take .* or set model\.cache_frozen"):
        activations.stored(make(variant), PREPARED, variant, tmp_path)


def test_without_frozen_blocks_nothing_is_stored(tmp_path):
    variant = frozen_to("all")
    assert activations.stored(make(variant), PREPARED, variant, tmp_path) is None
    assert not list(tmp_path.iterdir())
