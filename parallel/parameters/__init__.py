"""Parameters as one rank holds them."""
