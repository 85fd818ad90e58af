"""A source of drawn images for tests of packing, in a small module because every worker process imports it.

`python drawn.py FOLDER KIND LOG HOLD` packs one and waits in the middle, so that a test can interrupt it there.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Images
from m3lib.data.manifest import Source
from m3lib.errors import InputError
from m3lib.taxonomy import Attribute, Taxonomy


@dataclass(frozen=True)
class Drawn:
    """Images computed from their number; a row in `bad` can't be read, `kill` ends its worker, `bug` is no InputError.

    log: a file that gets a line for every row that is loaded. hold: rows from here on wait until `go(log)` exists.
    """

    bad: tuple[int, ...] = ()
    kill: int = -1
    bug: int = -1
    smooth: bool = False
    log: str = os.devnull
    hold: int = sys.maxsize

    def __call__(self, i: int) -> np.ndarray:
        with open(self.log, "a") as file:
            file.write(f"{i}\n")
        while i >= self.hold and not go(self.log).exists():
            time.sleep(0.01)
        if i in self.bad:
            raise InputError(f"photo {i} is spoilt")
        if i == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if i == self.bug:
            raise RuntimeError("a bug")
        if self.smooth:
            y, x, c = np.meshgrid(np.arange(24), np.arange(30), np.arange(3), indexing="ij")
            return (127.5 + 100 * np.sin(i + c + (x + y) / 15)).astype(np.uint8)
        return np.random.default_rng(i).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def source(count: int, load: Drawn, prefix: str = "") -> Source:
    taxonomy = Taxonomy((Attribute("shape", ("a", "b")),))
    names = [f"{prefix}{i}.png" for i in range(count)]
    frame = pd.DataFrame({"image": names, "split": "train", "role": ""})
    return Source(taxonomy, frame.assign(labels=[[0]] * count), load, ("before",))


def go(log: str) -> Path:
    """The file that ends the wait of a loader with this log."""
    return Path(f"{log}.go")


def held(log: str, hold: int) -> Source:
    return source(330, Drawn(bad=(3, 20, 250, 329), log=log, hold=hold))


SMALL = Images(height=16, width=20, fit="crop", format="raw", max_unreadable=0.0)
JPEG = replace(SMALL, format="jpeg")

if __name__ == "__main__":
    import drawn  # by its name, under which the resumed run pickles the loader as well
    from m3lib.prepare import pack

    folder, kind, log, hold = sys.argv[1:]
    pack.pack(drawn.held(log, int(hold)), Path(folder), replace(SMALL, format=kind, max_unreadable=0.1), workers=2)
