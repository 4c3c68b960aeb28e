"""`germinal follow`: a run's state and steps as they change, until it ends; its exit code is the run's."""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from common.exit_codes import DONE, FAILED, INTERRUPTED
from common.printable import printable
from launch import options
from launch.look.status import RUN, in_words

if TYPE_CHECKING:
    from launch.cluster.state import Status

EVERY_SECONDS = 5.0  # between two looks: each asks the queue once
MOST_UNREADABLE = 12  # looks in a row at files of the run that cannot be read, or are damaged


def add_command(add: options.AddCommand) -> None:
    parser = add("follow", "show a run's state and steps until it ends, and end with its exit code")
    parser.add_argument("folder", metavar="RUN", help=RUN)
    parser.set_defaults(run=follow)


def follow(args: argparse.Namespace) -> int:
    """Print a line at every change of the run's state or step. Ctrl-C ends this command and leaves the
    run. RuntimeError, one line, where the run's files cannot be read any more.
    """
    from launch.cluster import state

    args.started()
    folder = state.find(args.folder, os.environ)
    shown: tuple[object, ...] = ()
    unreadable = 0
    try:
        while True:
            try:
                now, unreadable = state.status(folder, os.environ), 0
            except (OSError, ValueError) as error:
                unreadable += 1
                if unreadable == MOST_UNREADABLE:
                    raise RuntimeError(str(error)) from None
                time.sleep(EVERY_SECONDS)
                continue
            if (now.state, now.reason, now.progress.step) != shown:
                shown = (now.state, now.reason, now.progress.step)
                print(_line(now), flush=True)
            # Whether a job still runs may be unknown for a while, where the queue does not answer.
            if not now.is_live and (now.state != "unknown" or now.progress.is_finished):
                break
            time.sleep(EVERY_SECONDS)
    except KeyboardInterrupt:
        print(f"the run goes on: `germinal status {args.folder}`", file=sys.stderr)
        return INTERRUPTED
    if now.code is not None:
        return now.code
    return DONE if now.progress.is_finished else FAILED


def _line(now: "Status") -> str:
    parts = [time.strftime("%H:%M:%S"), now.state]
    if now.progress.step is not None:
        parts.append(f"step {now.progress.step}/{now.progress.steps}")
    if now.progress.loss is not None:
        parts.append(f"loss {now.progress.loss:.4g}")
    if now.is_live and now.progress.seconds_left:
        parts.append(f"{in_words(now.progress.seconds_left)} left")
    if now.reason:
        parts.append(f"({now.reason})")
    return printable("  ".join(parts))
