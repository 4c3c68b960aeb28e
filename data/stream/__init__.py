"""From a corpus to micro-batches: the order of sequences, and the arrays of each."""
