"""Search a catalogue by attribute and by class: `from m3lib.search import Index`.

- `index`: open an index folder, search it, and get attention maps and query vectors
- `query`: what a person may give to a search; `threads`: one thread for it
- `catalogue`: the indexed images and their embeddings, and the exact ranking by classes
- `vector_index`: the exact and the compressed faiss index of one attribute
- `build`: embed the catalogue with a trained network and write an index folder; its format
- `shares`: embed the catalogue by several processes or machines, `python -m m3lib.search.shares 2/8`
- `export`: write Parquet and faiss files for other databases, `python -m m3lib.search.export FOLDER [INDEX]`
- `explore_page`: the widgets of notebooks/explore.ipynb
"""

from m3lib.search.index import Index, Match

__all__ = ["Index", "Match"]
