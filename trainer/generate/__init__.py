"""A trained run continues a text."""
