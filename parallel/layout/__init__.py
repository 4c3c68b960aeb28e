"""Which rank does what: the sizes of the mesh axes, the cuts of the model, the process groups."""
