"""Run a notebook as a stage; check inputs before anything slow starts."""
