"""Which rank hangs, and in which call: a phase that lasts too long is a fault."""
