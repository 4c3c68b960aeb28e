"""Exit codes of the project's processes. Launchers, batch scripts and supervisors act on them."""

import signal

DONE = 0  # everything that was asked for is done
FAILED = 1  # command and config were right, and the work failed
WRONG = 2  # the command line or the config is wrong: the same command fails again
# Asked to stop, state saved; or another process holds the run: start again (EX_TEMPFAIL of sysexits.h).
STOPPED = 75
INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C; state saved where a run was under way
NOBODY_READS = 128 + signal.SIGPIPE  # the reader of standard output has gone (`… | head`)

IN_WORDS = {
    DONE: "done",
    FAILED: "failed",
    WRONG: "the command line or the config is wrong",
    STOPPED: "asked to stop, and to be run again",
    INTERRUPTED: "interrupted",
}

ASKED_TO_STOP = (STOPPED, INTERRUPTED)
"""Of a rank that was asked to stop. From the end of the first step on, all ranks leave together."""


def of_request(number: int) -> int:
    """Return the exit code after a request to stop by a signal, where the state is saved or nothing was under
    way.
    """
    return INTERRUPTED if number == signal.SIGINT else STOPPED


def request_in_words(number: int) -> str:
    """Return what a request to stop by a signal was, for a line that goes on with when it came."""
    return "interrupted" if number == signal.SIGINT else "asked to stop"
