"""`germinal rank`: become one rank of a run, as another launcher starts it."""

import argparse
import os

from launch import options
from launch.begin.train import add_debug_options, debug_arguments
from launch.job import DEBUG, RANK, ProcessCommand, python
from launch.local.rank_commands import KEEP_MEMORY


def add_command(add: options.AddCommand) -> None:
    parser = add("rank", "one rank of a run: for srun, torchrun --no-python, deepspeed --no_python, mpirun")
    options.add_config(parser)
    parser.add_argument(
        "--local_rank",
        "--local-rank",
        metavar="N",
        help="as some launchers pass it; LOCAL_RANK has the same number",
    )
    add_debug_options(parser)
    parser.set_defaults(run=rank)


def rank(args: argparse.Namespace) -> int:
    """Become `python -m trainer CONFIG [key=value…]` of this installation, whatever lies in the working
    directory. The process stays the launcher's child; its exit code is the rank's.

    It is replaced and not imported: glibc reads the variables of KEEP_MEMORY when a program begins.
    """
    from launch.local.run import DETERMINISTIC, become

    debug_options = debug_arguments(args)
    added = KEEP_MEMORY | (DETERMINISTIC if args.debug else {})
    env = {name: value for name, value in added.items() if name not in os.environ}
    module = (DEBUG, *debug_options) if args.debug else (RANK,)
    become(ProcessCommand(python(*module, args.config, *args.overrides), env))
