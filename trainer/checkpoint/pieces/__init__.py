"""The pieces of a checkpoint's tensors: where each is cut, which rank stored it, and in which files. By
arithmetic, so that a rank finds its own at a cost that does not grow with the ranks. No torch here.

Read in this order:
  cuts.py     how a tensor is cut, once for all of its pieces
  owners.py   which rank stored each piece
  files.py    the files of all ranks: FILES.txt, of which a rank reads the rows that it needs
"""
