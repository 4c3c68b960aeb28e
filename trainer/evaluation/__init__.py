"""Held-out sets, evaluated inside a run."""
