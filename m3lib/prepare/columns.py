"""The columns of a person's table that a search can filter by."""

from collections.abc import Sequence

import pandas as pd

from m3lib.config import Csv
from m3lib.prepare.spelling import missing_key, missing_keys
from m3lib.prepare.table import find_column, open_table


def filter_columns(settings: Csv, wanted: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """The wanted columns of csv.table, one row per image of the manifest; numbers where all cells are numbers.

    Empty cells and the words of csv.missing are missing values. names: of the images. Prints a note on a column of
    numbers that some words make text. Raises InputError for a column that the table lacks.
    """
    frame = pd.DataFrame(index=range(len(names)))
    if not wanted:
        return frame
    table = open_table(settings, 1.0)
    for name in wanted:
        column = find_column(table.cells, name, "index.columns", table.path)
        cells = pd.Series(table.cells[column].str.strip().to_numpy(), table.names).reindex(names)
        unknown = {"", *missing_keys(settings)}
        cells = cells.where(~cells.fillna("").map(missing_key).isin(unknown), None)
        numbers = pd.to_numeric(cells, errors="coerce")
        words = cells[numbers.isna() & cells.notna()]
        if 0 < len(words) < len(cells.dropna()) / 2:
            print(f"{column}: text, not numbers, since there are words such as {words.iloc[0]!r} (csv.missing)")
        frame[column] = (cells if len(words) else numbers).to_numpy()
    return frame
