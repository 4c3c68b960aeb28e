"""`germinal prepare`: any sources → a tokenised, indexed, hashed corpus."""
