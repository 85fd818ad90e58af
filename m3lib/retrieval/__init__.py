"""The protocol: similarity scores, rankings and metrics."""
