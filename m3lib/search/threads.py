"""One thread for one query: more would wait for each other on a busy machine, and a single photo gains little by them.

The results of a query do not depend on it, except that the last bits of an embedding may.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import torch

lock = threading.Lock()
running: list[int] = []  # torch's threads before the first of the queries that run now


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and faiss compute on the calling thread, and restore its settings afterwards.

    Torch has a setting per thread, and gives a new thread the latest one of any. Queries that run at the same time in
    several threads therefore restore what was set before the first of them.
    """
    with lock:
        before = running[0] if running else torch.get_num_threads()
        running.append(before)
        torch.set_num_threads(1)
    faiss_before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(faiss_before)
        with lock:
            running.pop()
            torch.set_num_threads(before)
