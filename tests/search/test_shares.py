"""A catalogue embedded in shares: the index of one process, whatever stops; foreign and damaged blocks are refused."""

import shutil

import numpy as np
import pytest
from safetensors.torch import save_file

from catalogues import build_index, noise_images
from m3lib.errors import InputError
from m3lib.search import shares
from m3lib.training import inference
from tiny import make_system, make_variant

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


def embed(folder, model, share, of, prepared=PREPARED):
    mark = shares.fingerprint(prepared, ROWS, VARIANT, model)
    shares.embed(folder, make_system("m3").eval(), prepared, ROWS, "fp32", mark, share, of)


def test_shares_together_give_the_bytes_of_an_index_made_at_once(tmp_path, model, monkeypatch):
    whole = build_index(tmp_path / "whole", PREPARED)
    for share in (2, 0, 1):  # in any order
        embed(tmp_path / "work" / "shares", model, share, 3)
    monkeypatch.setattr(inference, "embed", None)  # nothing is left to embed
    index = build_index(tmp_path, PREPARED)
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (index.folder / path.name).read_bytes(), path.name
    assert not (tmp_path / "work" / "shares").exists()


def test_a_stopped_share_goes_on_and_the_index_embeds_what_is_missing(tmp_path, model, monkeypatch):
    whole = build_index(tmp_path / "whole", PREPARED)
    folder, embedded, compute = tmp_path / "work" / "shares", [], inference.embed

    def stopping(system, prepared, rows, *rest):
        if len(embedded) == 2:
            raise KeyboardInterrupt
        embedded.append(int(rows[0]))
        return compute(system, prepared, rows, *rest)

    monkeypatch.setattr(inference, "embed", stopping)
    with pytest.raises(KeyboardInterrupt):
        embed(folder, model, 1, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["000001.safetensors", "000003.safetensors"]
    embedded.clear()
    monkeypatch.setattr(inference, "embed", lambda *a: (embedded.append(int(a[2][0])), compute(*a))[1])
    embed(folder, model, 1, 2)
    assert embedded == [16 * number for number in (5, 7, 9)]
    index = build_index(tmp_path, PREPARED)
    assert embedded[3:] == [16 * number for number in (0, 2, 4, 6, 8)]
    assert (index.folder / "embeddings.safetensors").read_bytes() == (
        whole.folder / "embeddings.safetensors"
    ).read_bytes()


def test_blocks_of_another_network_or_other_images_and_damaged_ones_are_refused(tmp_path, model):
    folder = tmp_path / "work" / "shares"
    embed(folder, model, 0, 4)
    with pytest.raises(InputError, match=r"000000\.safetensors was embedded by another network or from other images"):
        embed(folder, model, 0, 1, changed_pixels())
    shutil.copy(folder / "000000.safetensors", folder / "000001.safetensors")
    (folder / "000001.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"000001\.safetensors can't be read .*remove it, and its share will embed it"):
        embed(folder, model, 1, 4)


def changed_pixels():
    images = PREPARED.images.copy()
    images[0, 0, 0, 0] ^= 1
    return type(PREPARED)(PREPARED.taxonomy, PREPARED.manifest, images)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/3", "1/", "/", "-1/3", "1/3/3"])
def test_what_is_no_share_is_told(text):
    with pytest.raises(InputError, match="is no share: write 2/8 for the second of eight"):
        shares.share_of(text)
    assert shares.share_of("2/8") == (1, 8)
