"""The append-only logs of a run."""
