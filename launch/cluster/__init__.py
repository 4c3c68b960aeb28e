"""A run as a job of a batch system. Imports no torch."""
