"""Predictors of tasks from their embeddings, and the metrics."""
