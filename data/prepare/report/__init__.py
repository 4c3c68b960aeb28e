"""What `prepare` counts and tells: the tally, the data card, the progress bar."""
