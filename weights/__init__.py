"""Data of the distribution: the registry of checkpoints and the bundled ones."""
