"""`germinal train`: train, or go on training, the run that a config describes."""

import argparse
import os
import sys
from dataclasses import replace

from launch import options
from launch.checks import check_alone, check_job
from launch.job import DEBUG, Job
from trainer.process import cores

DEBUGGING = ("steps", "step", "overfit", "rows", "out", "any_algorithm", "no_anomaly", "debug_rank")
"""The options of --debug."""


def add_command(add: options.AddCommand) -> None:
    parser = add("train", "train, or go on training, the run that a config describes")
    options.add_job(parser)
    add_debug_options(parser)
    parser.set_defaults(run=train)


def add_debug_options(parser: argparse.ArgumentParser) -> None:
    """Add --debug, and what goes with it; all others are unset by default."""
    group = parser.add_argument_group("debugging", "needs --debug; docs/debugging.md has a session")
    add = group.add_argument
    add(
        "--debug",
        action="store_true",
        help="look into the run and write nothing into its folder: a batch with its sources, a step with "
        "statistics by layer, checks that every value is finite; pdb where it fails",
    )
    add("--steps", type=options.count, metavar="K", help="optimiser steps (default 1; with --overfit 300)")
    add(
        "--step",
        type=options.integer,
        metavar="N",
        help="from that checkpoint, 0: new weights (default: the newest)",
    )
    add(
        "--overfit",
        action="store_true",
        help="all steps on one batch: is it learnt by heart? exit code 1 if not",
    )
    add("--rows", type=options.integer, metavar="N", help="sequences of the batch to show (default 2)")
    add("--out", metavar="DIR", help="for table and picture (default: a new temporary folder)")
    add(
        "--any-algorithm",
        action="store_true",
        help="not only deterministic ones: for operators that have none, and for speed",
    )
    add("--no-anomaly", action="store_true", help="without autograd's anomaly detection, which costs most")
    add(
        "--debug-rank",
        type=options.integer,
        metavar="N",
        help="pdb for this rank only (default: each that fails; with another launcher: none)",
    )


def debug_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of --debug that were given, for `trainer.debug.command`. ValueError where one was
    given without --debug, or cannot be meant.
    """
    values = {name: getattr(args, name) for name in DEBUGGING}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    words = {name: f"--{name.replace('_', '-')}" for name in given}
    if given and not args.debug:
        first = next(iter(given))
        keys = "; keys of the config are key=value, without dashes: train.steps=…" if first == "steps" else ""
        raise ValueError(f"{words[first]} is an option of --debug{keys}")
    for name in ("step", "rows", "debug_rank"):
        if given.get(name, 0) < 0:
            raise ValueError(f"{words[name]} {given[name]}: must be 0 or more")
    return tuple(words[name] if value is True else f"{words[name]}={value}" for name, value in given.items())


def train(args: argparse.Namespace) -> int:
    """Check the config for this number of ranks; then run the ranks, and start them again after a failure."""
    from launch.local import run
    from launch.local.keep_running import keep_running
    from trainer.process.disk import check_folder

    debug_options = debug_arguments(args)
    check_alone(os.environ)
    occupancy = cores.Occupancy()
    job = Job(args.config, tuple(args.overrides), args.nproc)
    if args.debug:
        job = replace(job, module=DEBUG, options=debug_options)
        job = job.alone() if job.nproc == 1 else job
    cfg = check_job(job)
    if not args.debug:
        check_folder(cfg.folder)
    elif (args.debug_rank or 0) >= job.nproc:
        raise ValueError(f"--debug-rank {args.debug_rank}: there are {job.nproc} ranks, from 0 on")
    threads = cores.choose(
        job.nproc, asked=cfg.train.threads, environ=os.environ, folder=cfg.folder, occupancy=occupancy
    )
    job = replace(job, threads=threads.count)
    ranks = f"{job.nproc} rank{'s' * (job.nproc > 1)}"
    print(f"{cfg.folder}: starting {ranks}, {threads}", file=sys.stderr)
    if args.debug:
        if job.nproc == 1:
            args.started()  # Ctrl-C raises KeyboardInterrupt, at which pdb opens
        return run.debug(job)
    return keep_running(job, cfg)
