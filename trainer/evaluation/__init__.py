"""A model, evaluated on the engine that holds it, on any layout: inside a run, or by `germinal evaluate`.

heldout.py    opens the sets of the config, without their damaged documents
evaluate.py   loss and bits per byte of each set, at the steps that the config names
best.py       the best figure so far, and when a run ends for want of a better one
scoring.py    the log-likelihood of single texts
bias.py       pairs of sentences that differ in one term
probes.py     opens the bias probes of a run
"""
