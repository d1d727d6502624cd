"""HEAR modules, a task's audio, and its embeddings on disk."""
