"""A query computes on one thread, whatever others do at the same time."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import faiss
import pytest
import torch

from catalogues import noise_images
from m3lib.errors import InputError
from m3lib.search import Index, threads, vector_index
from m3lib.training import inference
from notebook_runs import MAX_WAIT

PREPARED = noise_images()


def settings_of_threads() -> tuple[int, int]:
    return torch.get_num_threads(), faiss.omp_get_max_threads()


def set_threads(of_torch: int, of_faiss: int) -> None:
    torch.set_num_threads(of_torch)
    faiss.omp_set_num_threads(of_faiss)


@pytest.fixture
def two_threads(indexed):
    """Two threads of torch and of faiss, some builds of which share the setting."""
    indexed()  # building one sets the number of threads
    before = settings_of_threads()
    set_threads(2, 2)
    yield
    set_threads(*before)


def test_a_query_computes_on_one_thread_and_restores_the_settings(indexed, two_threads, monkeypatch):
    index, during = indexed(), []
    predict, rank = inference.predict, vector_index.rank
    monkeypatch.setattr(inference, "predict", lambda *given: during.append(settings_of_threads()) or predict(*given))
    monkeypatch.setattr(vector_index, "rank", lambda *given: during.append(settings_of_threads()) or rank(*given))
    for call in (index.search, index.attention_maps):
        call(PREPARED.images[0], "colour")
        assert settings_of_threads() == (2, 2)
    assert during == [(1, 1)] * 3
    with pytest.raises(InputError):
        index.search("nowhere.jpg", "colour")
    Index.open(index.folder)
    assert settings_of_threads() == (2, 2)


def test_queries_in_several_threads_at_a_time(indexed, two_threads):
    """Each thread gets the results of one after the other, and new threads get the setting from before."""
    index, rows = indexed(), range(24)
    expected = [index.search(PREPARED.images[row], "colour") for row in rows]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: index.search(PREPARED.images[row], "colour"), rows))
        assert set(pool.map(lambda _: torch.get_num_threads(), range(64))) == {2}
    assert found == expected
    assert settings_of_threads() == (2, 2)
    with ThreadPoolExecutor(1) as pool:
        assert (
            pool.submit(lambda: Index.open(index.folder).search(PREPARED.images[3], "colour")).result() == expected[3]
        )
        assert pool.submit(torch.get_num_threads).result() == 2


def test_threads_with_unequal_settings_that_search_at_the_same_time(indexed, two_threads, monkeypatch):
    """Each keeps its own, and a thread that starts meanwhile gets the latest setting."""
    index, predict, together = indexed(), inference.predict, Barrier(2)

    def predict_together(*given):
        together.wait(MAX_WAIT)
        started_meanwhile.append(threads.in_new_thread(torch.get_num_threads))
        together.wait(MAX_WAIT)
        return predict(*given)

    def query(count: int) -> tuple[int, int]:
        torch.get_num_threads()  # a thread's first use of torch would overwrite what it has set
        set_threads(count, count)
        together.wait(MAX_WAIT)
        index.search(PREPARED.images[0], "colour")
        return settings_of_threads()

    monkeypatch.setattr(inference, "predict", predict_together)
    for counts in ([8, 4], [3, 5]):
        started_meanwhile: list[int] = []
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(query, counts)) == [(count, count) for count in counts]
        assert set(started_meanwhile) < set(counts)  # both the same


def test_a_search_in_a_forked_process(indexed, two_threads):
    """A forked process lacks the threads that torch has started, and would wait for them forever."""
    index, photo = indexed(), PREPARED.images[5]
    torch.rand(999, 999) @ torch.rand(999, 999)
    expected = index.search(photo, "colour")
    if not (child := os.fork()):
        signal.alarm(MAX_WAIT)  # ends a child that waits
        found = [searched.search(photo, "colour") for searched in (index, Index.open(index.folder))]
        os._exit(found != [expected, expected])
    assert os.waitpid(child, 0)[1] == 0
