"""Corpora: making them (`prepare`), keeping them (`corpus`), reading them as training sequences (`stream`)."""
