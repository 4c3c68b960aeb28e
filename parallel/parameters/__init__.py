"""Parameters as one rank holds them.

sharded_parameter.py   which part of the global tensor, in which memory
initialize.py          first values: each parameter drawn whole from (seed, name), then cut
ownership.py           which of several ranks counts and saves a parameter
towers.py              the modules that a model's plan names: blocks, first and last ones
whole_matrices.py      functions of whole matrices over sharded ones, for Muon
"""
