"""Tables as Markdown."""

import pandas as pd


def markdown_table(cells: pd.DataFrame) -> str:
    """Return a table as Markdown, with the index as the first column."""
    lines = [[cells.index.name, *cells.columns], ["---"] * (cells.shape[1] + 1)]
    lines += [[name, *row] for name, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
