"""Training runs: processes, sharding, mixed precision and checkpoints, for `fit` and `distill_`."""
