"""What the command `germinal` starts: Ctrl-C is one line from the first moment on."""

import io
import sys

from trainer.interrupts import LeaveAtOnce


def main() -> int:
    """Run the command line; returns the exit code."""
    at_once = LeaveAtOnce("the command began").begin()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal's encoding may not hold what is said
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    from launch import cli

    return cli.main(started=at_once.end)
