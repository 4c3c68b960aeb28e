"""The ranks of one machine. Read in this order:

run.py             run a job: become its only rank, supervise several, or stay in this process (--debug)
rank_commands.py   job → the command line and the environment of each rank
supervisor.py      starts the ranks and makes one program of them: one exit code, one error, one Ctrl-C
local_rank.py      one rank's process: how it starts, how it ended
rank_output.py     passes on what a rank prints, and holds its error back
signal_inbox.py    signals that arrive at the supervisor
"""
