"""A rank as a process of the operating system.

entry.py        starts a command of `trainer` in a process of its own; Ctrl-C during imports is one line
starting.py     reports what the start is doing, where that takes long
interrupts.py   signals: leave at once while there is nothing to save, else save first
failures.py     an error → one line, one event, a traceback file and an exit code; by which rank
notify.py       messages to somebody outside: faults, restarts, the end
ending.py       the process ends without taking torch apart

cores.py        how many CPU threads a rank is given; threads.py sets them
disk.py         errors of a full disk or a folder that cannot be written, with what to do
allocation.py   the error where a model's parameters find no memory
"""
