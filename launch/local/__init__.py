"""The ranks of one machine. Read in this order:

keep_running.py     `germinal train`: run the ranks, and start them again after a failure
run.py              run the ranks of another command once; stay in this process (--debug)
debug_terminal.py   ranks under --debug that enter pdb get the terminal one after another
rank_commands.py    job → the command line and the environment of each rank
meeting_socket.py   where the ranks of one machine meet
supervisor.py       starts the ranks and makes one program of them: one exit code, one error, one Ctrl-C
local_rank.py       one rank's process: how it starts, how it ended
ended.py            how all of them ended
rank_output.py      passes on what a rank prints, and holds its error back
rank_log.py         keeps what a rank prints in the run folder
folder_work.py      work on a run folder that may hang
signal_inbox.py     signals that arrive at the supervisor
"""
