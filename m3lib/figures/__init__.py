"""Charts, panels and UMAP plots."""
