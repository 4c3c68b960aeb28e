"""`python -m trainer.process.entry MODULE …`: runs a module's `main`, so that Ctrl-C during its imports is
one line.
"""

import importlib
import sys

from common.exit_codes import WRONG
from common.standard_error import complain, forgive
from trainer.process.ending import run_to_the_end
from trainer.process.interrupts import LeaveAtOnce


def main(arguments: list[str]) -> int:
    """Run `MODULE.main(other arguments, at_once)`; return its exit code."""
    module, *rest = arguments
    at_once = LeaveAtOnce("the end", lost="").begin()
    try:
        command = importlib.import_module(module)
    except ValueError as error:  # a package lacks something: see `parallel.relied_on`
        return complain(error, WRONG)
    return command.main(rest, at_once)


if __name__ == "__main__":
    # A terminal's encoding may not hold what a model writes.
    forgive()
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    run_to_the_end(lambda: main(sys.argv[1:]))
