"""Which rank hangs, and in which call: a phase that lasts too long is a fault.

phases.py       what each thread of a rank does and since when; how long a phase may last
stacks.py       where the threads of this process are, and a stack in words
whereabouts.py  both together: where this rank is, as it tells rank 0
report.py       all ranks' whereabouts → who is behind, three lines, the text of the file
messages.py     what rank 0 asks the others, and their answers
watchdog.py     the thread that looks, what follows, and the end
begin.py        a run's watchdog; the file and the event in the run folder
"""
