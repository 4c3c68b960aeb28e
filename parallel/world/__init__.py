"""Which ranks there are, where they meet, and who is still there."""
