"""What trained runs can do: `germinal evaluate`. Read in this order:

command.py      the process, one for each rank
examination.py  one run, on everything that was asked for
sets.py         held-out sets: loss, perplexity, bits per byte
choices.py      multiple choice by likelihood, zero-shot and few-shot
images.py       zero-shot classification of pictures by captions
labelled.py     a model's output of each row of a labelled set
calibration.py  is a model as sure as it is right?
harness.py      lm-evaluation-harness on a run folder
data.py         what a run was trained on, as its corpora say

Bias probes are in trainer/evaluation, for a run measures them while it trains, too; so is the report, whose
tables are in the card of an exported model besides.
"""
