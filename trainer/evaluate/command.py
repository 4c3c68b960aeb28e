"""The process of `germinal evaluate`, one for each rank.

`python -m trainer.process.entry trainer.evaluate.command [options] RUN… [key=value…]`

Exit codes: 0 done; 1 something is damaged or missing; 2 the command, a file or the layout is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from common.exit_codes import DONE, FAILED, WRONG
from common.files import write_atomically
from common.standard_error import complain, nobody_reads
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime
from trainer.config import of_folder
from trainer.config.evaluating import named, split_words
from trainer.evaluate.examination import Asked, examine
from trainer.evaluation.report import document, markdown
from trainer.process.interrupts import LeaveAtOnce
from trainer.record.sinks import encode


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this process, which `germinal` passes on as they are."""
    add = parser.add_argument
    for option in ("--set", "--choices", "--images", "--bias", "--tasks"):
        add(option, action="append", default=[])
    for option in ("--prompts", "--shots-from", "--include", "--out"):
        add(option, default="")
    for option in ("--shots", "--seed", "--limit"):
        add(option, type=int, default=0)
    add("--step", type=int)
    add("--json", action="store_true")


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Examine each run; rank 0 prints what was found. Return the exit code.

    `at_once` ends the process at a signal, in a thread: it may wait for another rank inside torch. Without it
    the signals stay the caller's.
    """
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate.command")
    add_options(parser)
    parser.add_argument("words", nargs="+")
    args = parser.parse_intermixed_args(arguments)
    try:
        if at_once:
            at_once.listen()
        runtime = runtimes.start()
    except ValueError as error:
        return complain(error, WRONG)
    except (RuntimeError, OSError) as error:
        return complain(error, FAILED)
    with ExitStack() as stack:
        stack.callback(runtime.stop)
        try:
            return _evaluate(args, runtime)
        except ValueError as error:
            return complain(error, WRONG)
        except BrokenPipeError:
            return nobody_reads()
        except (RuntimeError, OSError) as error:
            return complain(error, FAILED)


def _evaluate(args: argparse.Namespace, runtime: Runtime) -> int:
    runs, overrides = split_words(args.words)
    asked = Asked(
        sets=named(args.set, "--set"),
        choices=named(args.choices, "--choices"),
        shots=args.shots,
        shots_from=args.shots_from,
        seed=args.seed,
        images=named(args.images, "--images"),
        prompts=args.prompts,
        bias=named(args.bias, "--bias"),
        tasks=tuple(name for words in args.tasks for name in words.split(",")),
        include=args.include,
        limit=args.limit,
    )
    found = [examine(of_folder.find(run), overrides, runtime, asked, step=args.step) for run in runs]
    if not runtime.is_writer:
        return DONE
    text, whole = markdown(found), encode(document(found)) + "\n"
    if args.out:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, whole.encode())
        write_atomically(out.with_suffix(".md"), text.encode())
    print(whole if args.json else text, end="", flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], LeaveAtOnce("the end", lost="").begin()))
