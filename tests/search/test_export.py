"""The export for other databases: Parquet and faiss files that rank as the index does."""

import errno
import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from catalogues import build_index, noise_images
from m3lib.errors import InputError
from m3lib.search import export
from tiny import TAXONOMY

PREPARED = noise_images()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_index(tmp_path_factory.mktemp("index"), PREPARED)


def test_exported_vectors_give_the_scores_of_a_search(index, tmp_path):
    export.main([str(tmp_path / "out"), str(index.folder)])
    content = json.loads((tmp_path / "out" / "vectors.json").read_text())
    assert content == {"score": "weighted", "attributes": TAXONOMY.names}
    for n, attribute in enumerate(TAXONOMY.names):
        table = pq.read_table(tmp_path / "out" / f"{n}.parquet")
        vectors = np.stack(table["vector"].to_pylist())
        query = index.query_vector(PREPARED.images[6], attribute)
        assert table.schema.field("vector").type.list_size == len(query)
        matches = index.search(PREPARED.images[6], attribute, k=len(index))
        scores = dict(zip(table["name"].to_pylist(), vectors @ query, strict=True))
        assert {match.path: match.score for match in matches} == pytest.approx(scores, abs=1e-6)
        assert table["row"].to_pylist() == index.catalogue.rows.tolist()
        ids = faiss.read_index(str(tmp_path / "out" / f"{n}.faiss")).search(query[None], 5)[1][0]
        assert [table["name"][int(i)].as_py() for i in ids] == [match.path for match in matches[:5]]


def test_mistakes_of_the_command_line(index, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "folder").mkdir(parents=True)
    mistakes = {
        (tmp_path / "full", index.folder): "is not empty: name a new folder",
        (tmp_path / "new", tmp_path): "no search index",
        (tmp_path / "file", index.folder): "file is a file: name a new folder",
        (tmp_path / "file" / "below", index.folder): "below can't be written to (Not a directory)",
        ("/proc/m3", index.folder): "/proc/m3 can't be written to",  # refused to root too
        (tmp_path / "x\ud800", index.folder): "which utf-8, the file system's encoding, can't write",
    }
    for arguments, sentence in mistakes.items():
        with pytest.raises(SystemExit, match="2"):
            export.main([*map(str, arguments)])
        message = capsys.readouterr().err
        assert sentence in message
        assert "Traceback" not in message
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_nothing(index, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(export.shutil, "copyfile", fail)  # after the first Parquet file
    with pytest.raises((InputError, KeyboardInterrupt), match=r"can't be written to \(No space left|^$"):
        export.export(index, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
