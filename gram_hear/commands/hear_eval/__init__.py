"""The hear-eval command."""
