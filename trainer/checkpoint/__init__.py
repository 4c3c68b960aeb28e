"""A checkpoint: written, committed, proven, loaded, kept."""
