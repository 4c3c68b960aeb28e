"""What several packages need and none of them owns. Imports no other package of the project.

Interfaces between the floors:

model_plan.py           how a model is cut, sharded, initialised: models declare it, `parallel` applies it
module_interfaces.py    what a model's module may offer to `parallel`
objective.py            model inputs, losses and counts: objectives implement it, engines call it
precision.py            fp32, bf16, fp16

Processes and files:

exit_codes.py           how a process ended, for whoever started it
standard_error.py       messages, though nobody may be reading them
printable.py            text made fit for a terminal
files.py                files that survive a crash whole
lock.py                 locks between processes; a folder held by one process
hosts/                  which file system a folder lies on; leases where its locks do not reach other hosts
mapped_file.py          local files as memory
retry.py                attempts with pauses
programs.py             other programs, run to their end
processes.py            what the kernel tells of a process
"""
