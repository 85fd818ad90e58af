"""One thread for one query: more would wait for each other on a busy machine, and a single photo gains little by them.

The results of a query do not depend on it, except that the last bits of an embedding may.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import faiss
import torch

lock = threading.Lock()  # free in a forked process, which lacks the thread that would release it
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch and faiss compute on the calling thread, and restore its settings; those of other threads stay."""
    of_faiss = faiss.omp_get_max_threads()  # before torch's, because some builds share one setting
    of_torch = set_torch(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(of_faiss)
        set_torch(of_torch)


def set_torch(count: int) -> int:
    """Set torch's number of threads for the calling thread; return the one before.

    A thread that uses torch for the first time takes over the latest setting of any thread. A new thread therefore
    sets the one that was the latest before.
    """
    with lock:
        before, latest = torch.get_num_threads(), in_new_thread(torch.get_num_threads)
        torch.set_num_threads(count)
        if count != latest:
            in_new_thread(torch.set_num_threads, latest)
    return before


def in_new_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()
