"""Search a catalogue by attribute and by class: `from m3lib.search import Index`.

- `index`: open an index folder, search it, add and delete photos, and get attention maps
- `query`: what a person may give to a search; `threads`: one thread for it
- `catalogue`: images and their embeddings, and the exact ranking by classes
- `faiss_engine`: the index in files that never change; `vector_index`: its exact and compressed index of one attribute
- `lance_engine`: the index in a LanceDB database, with filters and changes; `lance_table`: its queries and indexes
- `build`: embed the catalogue with a trained network and write an index folder; its format
- `shares`: embed the catalogue by several processes or machines, `python -m m3lib.search.shares 2/8`
- `explore_page`: the widgets of notebooks/explore.ipynb
"""

from m3lib.search.index import Index, Match

__all__ = ["Index", "Match"]
