"""`germinal verify`: compare the first steps of a layout with those of one process."""

import argparse
import os
import tempfile
from dataclasses import replace

from launch import options
from launch.checks import check_alone, check_job
from launch.job import VERIFY, Job
from trainer.process import cores


def add_command(add: options.AddCommand) -> None:
    parser = add("verify", "is this layout's run the run of one process? compares them tensor by tensor")
    options.add_job(parser)
    parser.add_argument(
        "--steps", type=options.count, default=5, metavar="K", help="optimiser steps (default 5)"
    )
    parser.add_argument(
        "--comms",
        action="store_true",
        help="also show what one step sends, by mesh axis, next to the formula",
    )
    options.add_json(parser)
    parser.set_defaults(run=verify)


def verify(args: argparse.Namespace) -> int:
    """Run some steps in one process, then on the layout, and compare; the exit code is the verdict."""
    from launch.local import run

    check_alone(os.environ)
    occupancy = cores.Occupancy()
    job = Job(args.config, tuple(args.overrides), args.nproc, module=VERIFY)
    cfg = check_job(job)
    if cfg.train.fp8 != "none":
        # Its rounding, 1/16 an element, with scales that are a rank's own: docs/verify.md.
        raise ValueError(
            f"train.fp8={cfg.train.fp8}: two layouts round differently in 8 bits, by as much as a fault "
            "would show: verify with train.fp8=none, whose layout is the same"
        )
    check_job(job.reference())
    flags = (f"--steps={args.steps}", *(f"--{flag}" for flag in ("json", "comms") if getattr(args, flag)))
    with tempfile.TemporaryDirectory(prefix="germinal-verify-") as reference:

        def part(job: Job, name: str) -> Job:
            threads = cores.choose(
                job.nproc, asked=cfg.train.threads, environ=os.environ, folder=None, occupancy=occupancy
            )
            return replace(job, options=(*flags, name, reference), threads=threads.count)

        record, compare = part(job.reference(), "record"), part(job, "compare")
        return run.run_as_children(record) or run.run_as_children(compare)
