"""`germinal doctor`: is this machine, and this cluster, fit to train? Imports no torch. Read in this order:

finding.py       what a check found, how much that matters, what to do
check.py         what a check is: a function from the circumstances to findings, with a limit on its time
apart.py         runs a check in a process of its own, so that what hangs cannot hang the doctor
one_machine.py   every check of this machine
checks/          the checks, a file a subject
nodes/           every node of an allocation: the same checks there, what nodes do together, which differs
report.py        lines for people, JSON for scripts
"""
