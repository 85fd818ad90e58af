"""A catalogue embedded in shares: the index of one process, whatever stops; foreign and damaged blocks are refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from catalogues import IMAGE_SETTINGS, build_index, noise_images
from m3lib import config, systems
from m3lib.data import manifest
from m3lib.errors import InputError
from m3lib.search import build, shares
from m3lib.training import inference
from tiny import MODEL, TAXONOMY, VALUES, make_system, make_variant

PREPARED = noise_images(150)
ROWS = np.arange(150)
VARIANT = make_variant("m3")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(shares, "BLOCK", 16)
    monkeypatch.setattr(inference, "EMBED_BATCH", 16)


@pytest.fixture
def model(tmp_path):
    """The weights that `build_index` will find in its folder."""
    save_file(make_system("m3").state_dict(), tmp_path / "m3.safetensors")
    return tmp_path / "m3.safetensors"


def mark_of(model, prepared=PREPARED):
    return shares.fingerprint(prepared, ROWS, VARIANT, model, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def embed(data, model, share, of, prepared=PREPARED):
    mark = mark_of(model, prepared)
    folder = shares.folder_of(data, mark)
    shares.embed(folder, make_system("m3").eval(), prepared, ROWS, "fp32", mark, share, of)
    return folder


def test_shares_together_give_the_bytes_of_an_index_made_at_once(tmp_path, model, monkeypatch):
    whole = build_index(tmp_path / "whole", PREPARED)
    for share in (2, 0, 1):  # in any order
        embed(tmp_path, model, share, 3)
    monkeypatch.setattr(inference, "embed", None)  # nothing is left to embed
    index = build_index(tmp_path, PREPARED)
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (index.folder / path.name).read_bytes(), path.name
    assert not (tmp_path / "work" / "shares").exists()


def test_a_stopped_share_goes_on_and_the_index_embeds_what_is_missing(tmp_path, model, monkeypatch):
    whole = build_index(tmp_path / "whole", PREPARED)
    folder, embedded, compute = shares.folder_of(tmp_path, mark_of(model)), [], inference.embed

    def stopping(system, prepared, rows, *rest):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(int(rows[0]))
        return compute(system, prepared, rows, *rest)

    monkeypatch.setattr(inference, "embed", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path, model, 1, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["000001.safetensors", "000003.safetensors"]
    embedded.clear()
    monkeypatch.setattr(inference, "embed", lambda *a: (embedded.append(int(a[2][0])), compute(*a))[1])
    embed(tmp_path, model, 1, 2)
    assert embedded == [16 * number for number in (5, 7, 9)]
    index = build_index(tmp_path, PREPARED)
    assert embedded[3:] == [16 * number for number in (0, 2, 4, 6, 8)]
    assert (index.folder / "embeddings.safetensors").read_bytes() == (
        whole.folder / "embeddings.safetensors"
    ).read_bytes()


def test_blocks_of_another_network_or_other_images_are_never_mixed(tmp_path, model):
    """They lie in different folders. A file in the wrong folder, or a damaged one, ends in a sentence."""
    folder = embed(tmp_path, model, 0, 4)
    other = embed(tmp_path, model, 0, 4, changed_pixels())
    assert folder != other
    for precision in ("bf16", "fp32"):
        row = replace(VARIANT, train=replace(VARIANT.train, precision=precision))
        same = shares.fingerprint(PREPARED, ROWS, row, model, torch.device("cpu")) == mark_of(model)
        assert same == (precision == "fp32")
    shutil.copy(other / "000000.safetensors", folder)
    with pytest.raises(InputError, match=r"000000\.safetensors was embedded by another network or from other images"):
        embed(tmp_path, model, 0, 1)
    (folder / "000000.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"000000\.safetensors can't be read .*remove it, and its share will embed it"):
        embed(tmp_path, model, 0, 4)


def test_the_command_embeds_its_share_for_the_index_of_the_pipeline(tmp_path, monkeypatch, capsys):
    """With the settings, the threads and the arithmetic of the stage, which has nothing left to embed."""
    values = VALUES | {"model": VALUES["model"] | MODEL, "index": VALUES["index"] | {"variant": "m3"}, "threads": 1}
    settings = config.parse(values | {"train": VALUES["train"] | {"precision": "fp32"}, "accelerator": "cpu"})
    (tmp_path / "data" / "models").mkdir(parents=True)
    save_file(systems.build(settings.variant("m3"), TAXONOMY).state_dict(), tmp_path / "data/models/m3.safetensors")
    monkeypatch.setattr(config, "find_root", lambda: tmp_path)
    monkeypatch.setattr(config, "load", lambda path: settings)
    monkeypatch.setattr(manifest, "open_prepared", lambda folder: PREPARED)
    for share in ("2/2", "1/2"):
        monkeypatch.setattr("sys.argv", ["shares", share])
        shares.main()
    (folder,) = (tmp_path / "data" / "work" / "shares").iterdir()
    assert len([*folder.iterdir()]) == 10
    monkeypatch.setattr(inference, "embed", None)
    model, row = tmp_path / "data" / "models" / "m3.safetensors", settings.variant("m3")
    index = build.build(tmp_path / "data" / "index", PREPARED, model, row, IMAGE_SETTINGS, settings.index, 0, 1)
    assert len(index) == 150
    monkeypatch.setattr("sys.argv", ["shares", "3/2"])
    with pytest.raises(SystemExit):
        shares.main()
    assert "'3/2' is no share: write 2/8 for the second of eight" in capsys.readouterr().err


def changed_pixels():
    images = PREPARED.images.copy()
    images[0, 0, 0, 0] ^= 1
    return type(PREPARED)(PREPARED.taxonomy, PREPARED.manifest, images)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/3", "1/", "/", "-1/3", "1/3/3"])
def test_what_is_no_share_is_told(text):
    with pytest.raises(InputError, match="is no share: write 2/8 for the second of eight"):
        shares.share_of(text)
    assert shares.share_of("2/8") == (1, 8)
