"""A model, evaluated on the engine that holds it, on any layout: inside a run, or by `germinal evaluate`.

opening.py    opens all that a run's evaluations need
heldout.py    opens the sets of the config, without their damaged documents
evaluate.py   loss and bits per byte of each set, at the steps that the config names
best.py       the best figure so far, and when a run ends for want of a better one
scoring.py    the log-likelihood of single texts
answers.py    answers to questions as texts: exact match and F1 of SQuAD
bias.py       pairs of sentences that differ in one term
probes.py     opens the bias probes of a run
report.py     figures as tables and as one JSON document
"""
