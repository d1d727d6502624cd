"""The gram-hear command."""
