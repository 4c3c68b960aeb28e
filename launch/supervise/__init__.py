"""What to do when the ranks of a run have ended: start them again, stop, tell somebody. Torch-free."""
