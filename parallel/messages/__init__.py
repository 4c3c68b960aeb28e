"""Collectives inside autograd, and the count of what a step sends."""
