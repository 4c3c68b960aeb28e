"""Masked tokens, as BERT was trained: some tokens of a row are hidden and predicted from all the others.

config.py       its keys and facts; without torch
masked_lm.py    batch → masked rows, and what is predicted where
choice.py       which tokens of a row are predicted: one by one, or words as a whole
sentences.py    rows of two sentences, of which the second follows the first or is from elsewhere
"""
