"""Train one variant of the comparison, and embed images with it.

trainer      one training step, one epoch, one run; start here
checkpoint   save a run after each epoch, resume it, decide whether a checkpoint belongs to the run
schedule     stages of a training, learning rates, the optimiser
samplers     which images form a batch, and which of them are compared
augment      flips, shifts, crops and jitter of training images
inference    embeddings and attention maps of a trained network
devices      CPU or GPU, bf16 or fp32
distributed  one training in several processes, on one machine or several
"""
