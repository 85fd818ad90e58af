"""The columns of a person's table that are no attributes, but that a search can filter by."""

from collections.abc import Sequence

import pandas as pd

from m3lib.config import Csv
from m3lib.errors import InputError
from m3lib.prepare.table import find_column, open_table


def filter_columns(source: str, settings: Csv, wanted: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """The wanted columns of csv.table, one row per image of the manifest; numbers where all cells are numbers.

    Empty cells are missing values. names: of the images. Raises InputError for a source other than csv, and for a
    column that the table lacks.
    """
    frame = pd.DataFrame(index=range(len(names)))
    if not wanted:
        return frame
    if source != "csv":
        raise InputError(f"params.yaml, index.columns: the source {source} has no table to take them from")
    table = open_table(settings, 1.0)
    for name in wanted:
        column = find_column(table.cells, name, "index.columns", table.path)
        cells = pd.Series(table.cells[column].str.strip().to_numpy(), table.names).reindex(names)
        cells = cells.where(cells != "", None)
        numbers = pd.to_numeric(cells, errors="coerce")
        frame[column] = (numbers if numbers.notna().equals(cells.notna()) else cells).to_numpy()
    return frame
