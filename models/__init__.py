"""Networks, their targets, losses and post-processing, and checkpoints."""
