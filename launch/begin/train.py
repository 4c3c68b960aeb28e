"""`germinal train`: train, or go on training, the run that a config describes."""

import argparse
import os
import sys
from dataclasses import replace

from launch import options
from launch.checks import check_job
from launch.job import Job
from trainer.process import cores


def add_command(add: options.AddCommand) -> None:
    parser = add("train", "train, or go on training, the run that a config describes")
    options.add_job(parser)
    parser.add_argument("--debug", action="store_true", help="in this very process, on one rank: pdb works")
    parser.set_defaults(run=train)


def train(args: argparse.Namespace) -> int:
    """Check the config for this number of ranks; then become the only rank, or supervise several."""
    from launch.local import run
    from trainer.process.disk import check_folder

    if args.debug and args.nproc > 1:
        raise ValueError(f"--nproc {args.nproc}: --debug is one process; leave one of them out")
    occupancy = cores.Occupancy()
    job = Job(args.config, tuple(args.overrides), args.nproc)
    job = job.alone() if args.debug else job
    cfg = check_job(job)
    check_folder(cfg.folder)
    threads = cores.choose(
        job.nproc, asked=cfg.train.threads, environ=os.environ, folder=cfg.folder, occupancy=occupancy
    )
    job = replace(job, threads=threads.count)
    ranks = f"{job.nproc} rank{'s' * (job.nproc > 1)}"
    print(f"{cfg.folder}: starting {ranks}, {threads}", file=sys.stderr)
    return run.debug(job) if args.debug else run.run_job(job)
