"""`germinal attach`: this terminal becomes that of a rank which is in a debugger."""

import argparse
from pathlib import Path

from launch import options


def add_command(add: options.AddCommand) -> None:
    parser = add("attach", "the pdb of a rank that waits in it (train --debug), on this terminal")
    parser.add_argument("socket", metavar="SOCKET", help="as the rank has told; on the machine of the rank")
    parser.set_defaults(run=attach)


def attach(args: argparse.Namespace) -> int:
    """Connect the terminal with the rank until its debugger is left."""
    from launch.local import debug_terminal

    path = Path(args.socket)
    if not path.is_socket():
        raise ValueError(f"{path}: no rank waits there: give the path that the rank has told, on its machine")
    args.started()
    debug_terminal.attach(path)
    return 0
