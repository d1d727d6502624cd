"""Simulated rooms, sets of RIRs and noise, mixing, and naturalistic versions of HEAR tasks."""
