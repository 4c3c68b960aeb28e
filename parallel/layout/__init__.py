"""Which rank does what.

layout.py   sizes of the mesh axes from the config; rank ↔ place on every axis; what must divide. Torch-free
cuts.py     which blocks a pipeline stage has, which rows a rank's shard has. Torch-free
flat.py     a run of elements of a flattened tensor as blocks of the tensor. Torch-free
mesh.py     the process groups, with a picture of the axes
"""
