"""Corpora: making them (`prepare`), keeping them (`corpus`), reading sequences out of them (`stream`)."""
