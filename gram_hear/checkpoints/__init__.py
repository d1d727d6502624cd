"""Checkpoints: the registry of names, the published layouts, finding, loading and saving."""
