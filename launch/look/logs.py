"""`germinal logs`: what the jobs of a run printed."""

import argparse
import os
import sys
from collections import deque
from pathlib import Path

from launch import options
from launch.look.status import RUN

LINES = 100


def add_command(add: options.AddCommand) -> None:
    parser = add("logs", "what the newest job of a run printed")
    parser.add_argument("folder", metavar="RUN", help=RUN)
    how_many = f"from the end; 0: all (default {LINES})"
    parser.add_argument("--lines", type=int, default=LINES, metavar="N", help=how_many)
    which = "of this job, not of the newest"
    parser.add_argument("--job", default="", metavar="JOB", help=which)
    parser.add_argument("--rank", type=int, metavar="R", help="all that one rank of the run wrote")
    parser.set_defaults(run=logs)


def logs(args: argparse.Namespace) -> int:
    """Print the end of a log on standard output, and its path on standard error."""
    from launch.cluster import state

    if args.lines < 0:
        raise ValueError(f"--lines {args.lines}: must be 0 or more")
    folder = state.find(args.folder, os.environ)
    file = newest(folder, args.job) if args.rank is None else _of_rank(folder, args.rank)
    if file is None:
        of = f" of job {args.job}" if args.job else ": it was not submitted, or its job has not begun"
        raise RuntimeError(f"{folder} has no log{of}")
    print(f"{file}:", file=sys.stderr, flush=True)
    with file.open("rb") as log:
        for line in deque(log, maxlen=args.lines or None):
            sys.stdout.buffer.write(line)
    sys.stdout.flush()
    return 0


def _of_rank(folder: Path, rank: int) -> Path:
    file = folder / "logs" / f"rank-{rank:05d}.log"
    if file.is_file():
        return file
    known = [
        path.stem.removeprefix("rank-").lstrip("0") or "0" for path in sorted(file.parent.glob("rank-*.log"))
    ]
    there = f"there are those of {', '.join(known[:20])}" if known else "no rank wrote one yet"
    raise RuntimeError(f"--rank {rank}: {file} is not there: {there}")


def newest(folder: Path, job: str = "") -> Path | None:
    """Return the log that was written last in the run's newest submission that has one, or that of a job."""
    from launch.cluster import submission

    for at in reversed(submission.folders(folder)):
        files = [file for file in at.glob("log-*.txt") if job in ("", file.stem.removeprefix("log-"))]
        if files:
            return max(files, key=lambda file: file.stat().st_mtime_ns)
    return None
