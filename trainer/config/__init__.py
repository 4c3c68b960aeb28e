"""The config of a run: keys, files, checks."""
