"""Figures of the notebooks: arrays and tables in, a matplotlib figure out.

charts   the style, and bars, curves, heatmaps, scatter plots
panels   retrieval results and attention overlays
fonts    for names in any script
umap     two-dimensional UMAP positions of embeddings
"""
