"""Labelled recordings made into HEAR task directories."""
