"""Tokenizers: trained, built or loaded."""
