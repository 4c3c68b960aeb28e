"""`germinal train --debug`: a run looked into, without writing into its folder. Read in this order:

command.py     the process: its arguments, its exit codes
session.py     a run opened for reading: its engine, its newest checkpoint, the batches that come next
look.py        some steps of it, with all that is below
batch.py       what a batch is: shapes, source documents, text
determinism.py deterministic algorithms, and whether two forward passes agree
observer.py    hooks on every module: statistics, and the first value that is not finite
moments.py     mean, standard deviation, maximum and zeros of values that many ranks hold
layer_table.py statistics of all ranks, by module, parameter and layer: tables
picture.py     the same as a picture
overfit.py     can the model learn one batch by heart?
debugger.py    pdb on the terminal, or of one rank among several over a socket
"""
