"""The processes of `germinal transfer`.

`python -m trainer.process.entry trainer.transfer.command PART [--worker I --workers N] [--mark MARK]
CONFIG [key=value…]`

    begin    draw labels and random weights; see that every kind of fine-tuning can begin
    rates    a share of the fine-tunings that learning rates are chosen by
    scores   a share of the fine-tunings of the table

Processes share no memory: what one has done is a file. A fine-tuning that has a record is not done again.
The command that holds the folder gives its processes the mark of its start (`trainer.folder.fence`): one that
is left behind writes nothing once another start has taken the folder.

Exit codes: 0 done; 1 failed; 2 the config is wrong; 75 asked to stop, 130 by Ctrl-C: the same command goes
on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from common.exit_codes import DONE, FAILED, STOPPED, WRONG
from common.standard_error import complain
from parallel.world import runtime as runtimes
from parallel.world.runtime import Runtime
from trainer.config import transferring
from trainer.config.transferring import Transfer
from trainer.folder.fence import Fence
from trainer.process.interrupts import LeaveAtOnce
from trainer.transfer import labels, plan, trial
from trainer.transfer.plan import Trial
from trainer.transfer.records import Records

PARTS = ("begin", "rates", "scores")
TELL_SECONDS = 20.0  # between two lines on how far a process has come


def main(arguments: Sequence[str], at_once: LeaveAtOnce | None = None) -> int:
    """Do one part, or this process's share of it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.transfer.command")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mark", default="")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(arguments)
    if at_once:
        at_once.would_lose(": fine-tunings that are done are kept; the same command goes on")
    try:
        transfer = transferring.load(args.config, args.overrides, lambda folder: _join(folder, args.mark))
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
            if args.part == "begin":
                begin(transfer, runtime)
                return DONE
            return share(transfer, runtime, args.part, args.worker, args.workers)
        except BlockingIOError as error:  # another start is at work here
            return complain(error, STOPPED)
        except ValueError as error:
            return complain(error, WRONG)
        except (RuntimeError, OSError) as error:
            return complain(error, FAILED)


def _join(folder: Path, mark: str) -> Fence | None:
    """Return the right to write into a comparison's folder of the start with this mark; None without one."""
    if not mark:
        return None
    fence = Fence(folder)
    fence.join(mark)
    return fence


def begin(transfer: Transfer, runtime: Runtime) -> None:
    """Draw labels and random weights, and see that fine-tuning can begin from them, so that a mistake shows
    before pre-training, which takes longest.
    """
    cfg = transfer.cfg
    seen = labels.write_labels(cfg, transfer.guard)
    for seed in plan.seeds(cfg):
        trial.write_random_weights(transfer, seed, runtime)
    for method in cfg.methods:
        each = Trial(plan.RANDOM, method, min(cfg.labels), 0, cfg.rates[method][0], plan.HELDOUT)
        trial.check(each, transfer, runtime)
    # Last of all: a begin that was killed before is done again.
    Records(cfg, transfer.guard).note_begun(seen, labels.all_classes(cfg))


def share(transfer: Transfer, runtime: Runtime, part: str, worker: int, workers: int) -> int:
    """Do every `workers`-th fine-tuning of a part, from number `worker` on; return the exit code."""
    records = Records(transfer.cfg)
    if part == "rates":
        wanted = list(plan.rate_trials(transfer.cfg))
    else:
        wanted = list(plan.score_trials(transfer.cfg, records.scores()))
    mine = wanted[worker::workers]  # of all: other processes finish some while this one looks
    left = [each for each in mine if not records.has(each)]
    for each in set(mine).difference(left):  # whose record a killed process wrote last of all
        transfer.guard()
        shutil.rmtree(trial.run_folder(each, transfer), ignore_errors=True)
    told = time.monotonic()
    for number, each in enumerate(left):
        if time.monotonic() > told + TELL_SECONDS:
            told = time.monotonic()
            print(f"{part}: {number} of {len(left)} fine-tunings", file=sys.stderr, flush=True)
        try:
            finished = trial.run_trial(each, transfer, runtime)
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"{each.key}: {error}") from None
        if not finished:
            return STOPPED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], LeaveAtOnce("the end", lost="").begin()))
