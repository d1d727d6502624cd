"""Sound files in, embeddings out: one after another, or a whole collection on disk."""
