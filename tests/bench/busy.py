"""How long the search of a new photo takes on an idle machine and a busy one; part of `make bench WHAT=search`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from m3lib.search import Index

QUERIES, WARM_UP = 100, 10
PAUSE = 0.02  # seconds before each query, which comes from a person
START = 0.5  # seconds until the processes are busy
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # until this process ends


@contextmanager
def busy_cores() -> Iterator[int]:
    """Keep every core that this process may use busy with a process of its own; yield their number."""
    cores = len(os.sched_getaffinity(0))
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(cores)]
    try:
        time.sleep(START)
        yield cores
    finally:
        for process in processes:
            process.kill()
            process.wait()


def p50_ms(index: Index, images: Sequence[np.ndarray]) -> float:
    """The median over QUERIES searches of images (H, W, 3) that the index has to embed, one after the other."""
    seconds = []
    for i in range(WARM_UP + QUERIES):
        time.sleep(PAUSE)
        start = time.perf_counter()
        index.search(images[i % len(images)], index.attributes[0], k=min(10, len(index)))
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[WARM_UP:]))


def compare(index: Index, images: Sequence[np.ndarray]) -> str:
    """Measure on the machine as it is, then with busy cores; return a sentence with both and their ratio."""
    idle = p50_ms(index, images)
    with busy_cores() as cores:
        busy = p50_ms(index, images)
    times = f"p50 {idle:.2f} ms on the idle machine, {busy:.2f} ms with {cores} busy cores"
    return f"a new photo in {len(index):,} images: {times}, ratio {busy / idle:.2f} (at most 2.00 is the goal)"
