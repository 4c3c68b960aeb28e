"""The process of `germinal verify`: `record` in one process, then `compare` on every rank of the layout.

`python -m trainer.process.entry trainer.verify.command record|compare FOLDER [options] CONFIG [key=value…]`
"""

import argparse
import sys
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from common.exit_codes import DONE, FAILED, WRONG
from common.standard_error import complain, nobody_reads
from parallel.world import runtime as runtimes
from trainer.config import reading
from trainer.process.interrupts import LeaveAtOnce
from trainer.record.sinks import encode
from trainer.verify.compare import compare
from trainer.verify.reference import record
from trainer.verify.report import show


def main(arguments: list[str], at_once: LeaveAtOnce | None = None) -> int:
    """Record the reference or compare this rank with it. Rank 0's exit code of `compare` is the verdict;
    other ranks return 0 unless they fail.

    `at_once`: a signal ends the process at once for as long as the command runs, since there is nothing to
    save.
    """
    parser = argparse.ArgumentParser(prog="python -m trainer.verify.command")
    parser.add_argument("part", choices=("record", "compare"))
    parser.add_argument("reference", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--comms", action="store_true")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(arguments)
    try:
        cfg = reading.load(args.config, args.overrides)
        if at_once:
            at_once.listen()
        runtime = runtimes.start(timeout=timedelta(seconds=cfg.parallel.timeout_seconds))
    except ValueError as error:
        return complain(error, WRONG)
    except RuntimeError as error:
        return complain(error, FAILED)
    with ExitStack() as stack:
        stack.callback(runtime.stop)
        try:
            if args.part == "record":
                record(cfg, runtime, args.steps, args.reference)
                return DONE
            report = compare(cfg, runtime, args.reference, comms=args.comms)
        except ValueError as error:
            return complain(error, WRONG)
        except (RuntimeError, OSError) as error:
            return complain(error, FAILED)
        if not runtime.is_writer:
            return DONE
        _show(report, as_json=args.json)
        return DONE if report["equal"] else complain(f"not equal: {report['problems'][0]}", FAILED)


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    try:
        print(encode(report)) if as_json else show(report)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the latter is rich's; the verdict does not depend on a reader
        nobody_reads()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], LeaveAtOnce("the end", lost="").begin()))
