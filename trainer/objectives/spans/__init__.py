"""Objectives that lay a row's tokens out anew, so that a decoder learns to fill gaps.

config.py               the keys and facts of both, without torch
span_corruption.py      T5's: spans are replaced by sentinels, and given behind the text
fill_in_the_middle.py   the middle of a document behind its end
"""
