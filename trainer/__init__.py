"""One run: its config, its parts, the loop, its checkpoints and its record."""
