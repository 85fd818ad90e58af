"""The protocol: from stored embeddings to similarity scores, rankings and metrics.

embeddings   what a network outputs for each image, on disk and in memory
scores       how a query and a candidate are compared under one attribute
ranking      queries, candidates and relevance of a split; `evaluate` runs the protocol
metrics      average precision, recall, the tie rule, and their means
"""
