"""Held-out sets, evaluated inside a run.

heldout.py    opens the sets of the config, without their damaged documents
evaluate.py   loss and bits per byte of each set, at the steps that the config names
"""
