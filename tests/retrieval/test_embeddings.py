"""Embeddings: saved, loaded, refused, selected."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedded import D, M, N, make_embeddings, make_split
from m3lib.compatibility import SCORES
from m3lib.errors import InputError
from m3lib.retrieval import ranking
from m3lib.retrieval.embeddings import Embeddings, broadcast_over_attributes
from tiny import TAXONOMY, generator

ROWS = np.array([1, 4, 5, 9, 12])


def equal(a: Embeddings, b: Embeddings) -> bool:
    pairs = [(vars(a)[key], vars(b)[key]) for key in vars(a)]
    return all(x is y is None or (x.dtype == y.dtype and torch.equal(x, y)) for x, y in pairs)


@pytest.mark.parametrize("absent", [[], ["attribute"], ["posterior", "classes"]])
def test_embeddings_saved_and_loaded_are_the_same(tmp_path, absent):
    embeddings = replace(make_embeddings(ROWS), **dict.fromkeys(absent))
    embeddings.save(tmp_path / "e.safetensors")
    assert equal(Embeddings.load(tmp_path / "e.safetensors"), embeddings)


def test_embeddings_that_are_views_are_saved_whole(tmp_path):
    shared = broadcast_over_attributes(ROWS, torch.randn(5, D), TAXONOMY)
    shared.save(tmp_path / "e.safetensors")
    assert equal(Embeddings.load(tmp_path / "e.safetensors"), shared)


@pytest.mark.parametrize("spoil", ["missing", "cut", "text"])
def test_embeddings_that_cannot_be_read_are_refused(tmp_path, spoil):
    path = tmp_path / "e.safetensors"
    make_embeddings(ROWS).save(path)
    content = path.read_bytes()
    path.unlink()
    if spoil != "missing":
        path.write_bytes(content[:-40] if spoil == "cut" else b"nothing of the kind")
    with pytest.raises(InputError, match=r"e\.safetensors can't be read .*dvc repro train"):
        Embeddings.load(path)


def good() -> dict[str, torch.Tensor]:
    return {name: part for name, part in vars(make_embeddings(ROWS)).items() if part is not None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rows": None}, "it holds attribute, classes, posterior, not rows"),
        ({"more": torch.zeros(5)}, "it holds attribute, classes, more"),
        ({"attribute": None, "posterior": None, "classes": None}, "it holds rows, not rows and some of"),
        ({"rows": torch.tensor([1, 4, 4, 9, 12])}, "rows are not rising"),
        ({"rows": torch.arange(5.0)}, "rows are not rising"),
        ({"rows": torch.arange(5)[:, None]}, "rows are not rising"),
        ({"attribute": torch.zeros(4, N, D)}, r"attribute is torch.float32 \[4, 3, 6\] for 5 rows"),
        ({"attribute": torch.zeros(5, D)}, "attribute is"),
        ({"classes": torch.zeros(5, M, D, dtype=torch.int32)}, "classes is torch.int32"),
        ({"posterior": torch.zeros(5, M, 1)}, "posterior is"),
    ],
)
def test_a_file_of_other_tensors_is_told(tmp_path, changes, told):
    tensors = {name: part for name, part in (good() | changes).items() if part is not None}
    save_file(tensors, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match=rf"e\.safetensors can't be read as embeddings \(.*{told}.*\); run `dvc repro"):
        Embeddings.load(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    ("changes", "score", "told"),
    [
        ({"attribute": None}, "attribute", "can't be compared by the score attribute, only by concat, top_class"),
        (
            {"posterior": torch.rand(60, M - 1)},
            "posterior",
            f"have {M - 1} of posterior, .* has {M}",
        ),
        (
            {"attribute": torch.rand(60, N + 1, D)},
            "attribute",
            f"have {N + 1} of attribute, .* has {N}; run",
        ),
        ({"classes": torch.rand(60, 2, D)}, "concat", "have 2 of classes"),
    ],
)
def test_embeddings_of_another_taxonomy_or_score_are_told(changes, score, told):
    with pytest.raises(InputError, match=told):
        ranking.evaluate(make_split(), "test", score, replace(make_embeddings(60), **changes))


def test_take_gives_rows_in_the_order_asked_for():
    embeddings = make_embeddings(ROWS)
    found = embeddings.take(np.array([9, 1, 12, 1]))
    index = [3, 0, 4, 0]
    expected = Embeddings(*(part[index] for part in vars(embeddings).values()))
    assert equal(found, expected)


@pytest.mark.parametrize("rows", [[0], [4, 6], [13], [5, 100]])
def test_take_refuses_rows_that_are_not_there(rows):
    with pytest.raises(InputError, match="don't cover this split; run `dvc repro`"):
        make_embeddings(ROWS).take(np.array(rows))


@pytest.mark.parametrize(
    ("absent", "scores"),
    [
        ([], list(SCORES)),
        (["classes"], ["attribute", "segment", "soft_segment", "posterior"]),
        (["posterior"], ["attribute", "concat"]),
        (["attribute", "classes"], ["posterior"]),
    ],
)
def test_scores_are_those_the_embeddings_can_give(absent, scores):
    assert replace(make_embeddings(3), **dict.fromkeys(absent)).scores == scores


def test_one_vector_serves_every_attribute():
    vectors = torch.randn(5, D, generator=generator())
    embeddings = broadcast_over_attributes(ROWS, vectors, TAXONOMY)
    for n in range(N):
        torch.testing.assert_close(embeddings.attribute[:, n], vectors / vectors.norm(dim=1, keepdim=True))
    assert embeddings.scores == ["attribute"]
