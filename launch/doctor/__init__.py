"""`germinal doctor`: is this machine, and this cluster, fit to train? Imports no torch."""
