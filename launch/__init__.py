"""The front door: the command `germinal`, and the processes that it starts. Nothing here imports torch.

entry.py       the installed command: handles Ctrl-C before anything else, then calls cli.py
cli.py         parses the command line, runs one command, reports its failure in one line
begin/         commands that begin work: prepare, train, verify, generate
look/          commands that show what is there: data, checkpoint, config, plot
local/         the ranks of this machine: started, supervised, ended
job.py         what is to be run: config, overrides, number of ranks; nothing is executed there
checks.py      what is checked of a job before a rank starts
options.py     arguments that several commands share
tables.py      tables for people, JSON for scripts
quickstart.py  `make quickstart`
recipe_help.py the help of `germinal prepare`'s settings

To follow a command, read cli.py, the command's file, and for `train` local/keep_running.py. A new command is
a file in begin/ or look/ and a name in cli.py's COMMANDS. A second way to launch the ranks is a room beside
local/: it takes a `job.Job`, as `local.keep_running` does, and a command in begin/ chooses between the two.
"""
