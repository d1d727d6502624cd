"""The benchmark's tasks from their public archive."""
