"""Optimisers, and the learning rate."""
