"""The process that a rank is: how it begins, answers signals, computes with threads, and ends."""
