"""What the command `germinal` starts: it answers Ctrl-C in one line from the first moment on."""

import io
import sys
from typing import NoReturn

from common.standard_error import forgive
from trainer.process.ending import run_to_the_end
from trainer.process.interrupts import LeaveAtOnce


def main() -> NoReturn:
    """Run the command line, and end this process with its exit code."""
    at_once = LeaveAtOnce("the command began").begin()
    forgive()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal's encoding may lack characters of the output
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    from launch import cli

    run_to_the_end(lambda: cli.main(started=at_once.end))


if __name__ == "__main__":
    main()
