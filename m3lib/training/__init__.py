"""Training one row: the trainer, its samplers and schedule, devices, and inference."""
