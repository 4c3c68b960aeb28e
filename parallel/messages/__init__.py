"""Collectives, and the count of what a step sends.

collectives.py   all-gather, reduce-scatter and all-to-all inside autograd, over a dim of a tensor
comms.py         counts what a step sends by mesh axis, and the formulas that it is compared with
"""
