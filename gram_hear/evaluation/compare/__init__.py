"""The scores of one model and of several: tables, significance, pictures."""
