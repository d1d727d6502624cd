"""Labelled recordings made into tasks."""
