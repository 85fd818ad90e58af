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
    a, b = a.tensors, b.tensors
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("absent", [[], ["attribute"], ["posterior", "classes"]])
def test_embeddings_saved_and_loaded_are_the_same(tmp_path, absent):
    embeddings = replace(make_embeddings(ROWS), **dict.fromkeys(absent))
    embeddings.save(tmp_path / "e.safetensors")
    assert equal(Embeddings.load(tmp_path / "e.safetensors"), embeddings)


def test_embeddings_that_are_views_are_saved_in_full(tmp_path):
    shared = broadcast_over_attributes(ROWS, torch.randn(5, D), TAXONOMY)
    shared.save(tmp_path / "e.safetensors")
    assert equal(Embeddings.load(tmp_path / "e.safetensors"), shared)


@pytest.mark.parametrize("content", [None, b"other bytes", "cut"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "e.safetensors"
    make_embeddings(ROWS).save(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] if content == "cut" else content)
    with pytest.raises(InputError, match=r"e\.safetensors can't be read .*dvc repro train"):
        Embeddings.load(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rows": None}, r"but attribute \(torch.float16 \[5, 3, 6\]\), classes"),
        ({"more": torch.zeros(5)}, "more"),
        ({"attribute": None, "posterior": None, "classes": None}, r"but rows \(torch.int64 \[5\]\)"),
        ({"rows": torch.tensor([1, 4, 4, 9, 12])}, "of rising rows"),
        ({"rows": torch.arange(5.0)}, r"rows \(torch.float32"),
        ({"rows": torch.arange(5)[:, None]}, r"rows \(torch.int64 \[5, 1\]"),
        ({"rows": torch.tensor(3)}, r"rows \(torch.int64 \[\]"),
        ({"attribute": torch.zeros(4, N, D)}, r"attribute \(torch.float32 \[4, 3, 6\]"),
        ({"attribute": torch.zeros(5, D)}, "attribute"),
        ({"classes": torch.zeros(5, M, D, dtype=torch.int32)}, r"classes \(torch.int32"),
        ({"posterior": torch.zeros(5, M, 1)}, "posterior"),
    ],
)
def test_a_file_of_other_tensors_is_refused_and_its_content_listed(tmp_path, changes, problem):
    tensors = make_embeddings(ROWS).tensors | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "e.safetensors")
    with pytest.raises(InputError, match=rf"e\.safetensors does not hold embeddings .*{problem}.*; run `dvc repro"):
        Embeddings.load(tmp_path / "e.safetensors")


@pytest.mark.parametrize(
    ("changes", "score", "problem"),
    [
        ({"attribute": None}, "attribute", "can't be compared by the score attribute, only by concat, top_class"),
        ({"posterior": torch.rand(60, M - 1)}, "posterior", f"have {M - 1} of posterior, .* has {M}"),
        ({"attribute": torch.rand(60, N + 1, D)}, "attribute", f"have {N + 1} of attribute, .* has {N}; run"),
        ({"classes": torch.rand(60, 2, D)}, "concat", "have 2 of classes"),
    ],
)
def test_embeddings_of_another_taxonomy_or_score_are_refused(changes, score, problem):
    with pytest.raises(InputError, match=problem):
        ranking.evaluate(make_split(), "test", score, replace(make_embeddings(60), **changes))


def test_take_returns_rows_in_the_requested_order():
    embeddings = make_embeddings(ROWS)
    expected = Embeddings(*(tensor[[3, 0, 4, 0]] for tensor in vars(embeddings).values()))
    assert equal(embeddings.take(np.array([9, 1, 12, 1])), expected)


@pytest.mark.parametrize("rows", [[0], [4, 6], [13], [5, 100]])
def test_take_refuses_missing_rows(rows):
    with pytest.raises(InputError, match="don't cover this split; run `dvc repro`"):
        make_embeddings(ROWS).take(np.array(rows))


@pytest.mark.parametrize(
    ("absent", "scores"),
    [
        ([], list(SCORES)),
        (["classes"], ["attribute", "segment", "soft_segment", "posterior", "open"]),
        (["posterior"], ["attribute", "concat"]),
        (["attribute", "classes"], ["posterior"]),
    ],
)
def test_scores_that_the_embeddings_can_be_compared_by(absent, scores):
    assert replace(make_embeddings(3), **dict.fromkeys(absent)).scores == scores


def test_one_vector_is_broadcast_to_every_attribute():
    vectors = torch.randn(5, D, generator=generator())
    embeddings = broadcast_over_attributes(ROWS, vectors, TAXONOMY)
    for n in range(N):
        torch.testing.assert_close(embeddings.attribute[:, n], vectors / vectors.norm(dim=1, keepdim=True))
    assert embeddings.scores == ["attribute"]
