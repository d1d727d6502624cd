"""The HEAR evaluation protocol: embeddings of tasks, shallow predictors, scores."""
