"""A loader for tests of packing, apart because every worker process imports the module that it stands in."""

import os
import signal
from dataclasses import dataclass

import numpy as np

from m3lib.errors import InputError


@dataclass(frozen=True)
class Drawn:
    """Pictures made of their number; a row in `bad` can't be read, `kill` ends its worker, `bug` is no InputError."""

    bad: tuple[int, ...] = ()
    kill: int = -1
    bug: int = -1

    def __call__(self, i: int) -> np.ndarray:
        if i in self.bad:
            raise InputError(f"photo {i} is spoilt")
        if i == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if i == self.bug:
            raise RuntimeError("no one's fault")
        return np.random.default_rng(i).integers(0, 256, (24, 30, 3), dtype=np.uint8)
