"""What the command `germinal` starts: Ctrl-C is one line from the first moment on."""

from trainer.interrupts import LeaveAtOnce


def main() -> int:
    """Run the command line; returns the exit code."""
    at_once = LeaveAtOnce("the command began").begin()
    from launch import cli

    return cli.main(started=at_once.end)
