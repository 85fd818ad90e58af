"""What the last pipeline run cost: `make bench` prints seconds and memory of every notebook, and the overhead."""

import sys

import pandas as pd

from m3lib.config import find_root
from m3lib.errors import InputError


def last_run(timings: pd.DataFrame, pause: float = 60.0) -> pd.DataFrame:
    """The rows after the last pause of more than `pause` seconds between two notebooks: one `dvc repro`."""
    gap = timings["started"] - (timings["started"] + timings["seconds"]).shift()
    return timings[(gap > pause).cumsum() == (gap > pause).sum()]


def overhead(run: pd.DataFrame) -> tuple[float, float, float]:
    """Seconds from the first notebook to the end of the last; of those, in notebooks but not in cells; in neither."""
    span = (run["started"] + run["seconds"]).max() - run["started"].min()
    return span, (run["seconds"] - run["cell_seconds"]).sum(), span - run["seconds"].sum()


def main() -> int:
    path = find_root() / "data" / "work" / "timings.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist; run `make repro` first")
    run = last_run(pd.read_csv(path))
    print(run.drop(columns="started").to_string(index=False))
    span, starts, between = overhead(run)
    shares = [f"{seconds:.0f} s ({100 * seconds / span:.0f} %)" for seconds in (starts, between)]
    print(f"\n{span:.0f} s in all, of which {shares[0]} starts of notebooks, and {shares[1]} dvc between them")
    print(f"largest process: {run['peak_mb'].max():.0f} MB ({run.loc[run['peak_mb'].idxmax(), 'notebook']})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
