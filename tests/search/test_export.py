"""The export for other databases: Parquet and faiss files that rank as the index does."""

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from catalogues import build_index, noise_images
from m3lib.search import export
from tiny import TAXONOMY

PREPARED = noise_images()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_index(tmp_path_factory.mktemp("index"), PREPARED)


def test_exported_vectors_give_the_scores_of_a_search(index, tmp_path, capsys):
    assert export.main([str(tmp_path / "out"), str(index.folder)]) == 0
    assert "40 images, 3 attributes" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "vectors.json").read_text())
    assert [entry["attribute"] for entry in content["attributes"]] == TAXONOMY.names
    for entry in content["attributes"]:
        table = pq.read_table(tmp_path / "out" / entry["vectors"])
        assert table.schema.field("vector").type.list_size == entry["dims"]
        vectors = np.stack(table["vector"].to_pylist())
        query = index.query_vector(PREPARED.images[6], entry["attribute"])
        matches = index.search(PREPARED.images[6], entry["attribute"], k=len(index))
        scores = dict(zip(table["name"].to_pylist(), vectors @ query, strict=True))
        assert {match.path: match.score for match in matches} == pytest.approx(scores, abs=1e-6)
        assert table["row"].to_pylist() == index.catalogue.rows.tolist()
        ids = faiss.read_index(str(tmp_path / "out" / entry["faiss"])).search(query[None], 5)[1][0]
        assert [table["name"][int(i)].as_py() for i in ids] == [match.path for match in matches[:5]]


def test_mistakes_of_the_command_line(index, tmp_path, capsys):
    (tmp_path / "a").write_text("")
    assert export.main([str(tmp_path), str(index.folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert export.main([str(tmp_path / "b"), str(tmp_path / "c")]) == 1
    assert "no search index" in capsys.readouterr().err
    assert export.main([]) == 2
