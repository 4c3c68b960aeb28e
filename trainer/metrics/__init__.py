"""What a run measures and shows of itself."""
