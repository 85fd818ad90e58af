"""What the numbers say: comparisons, ablations, sweeps and recorded results."""
