"""The front door: the command line, and the processes that it starts."""
