"""What each command does. Heavy rooms are imported inside the function that needs them."""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.job import Command, Job, python
from trainer.folder import run_folder
from trainer.process import cores

if TYPE_CHECKING:
    from trainer.config.run_config import RunConfig


def version(args: argparse.Namespace) -> int:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"germinal {installed('germinal')}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Check the config for this many ranks, then become the rank, or watch over several."""
    from launch.local import submit
    from trainer.process.disk import check_folder

    if args.debug and args.nproc > 1:
        raise ValueError(f"--nproc {args.nproc}: --debug is one process; leave one of them out")
    occupancy = cores.Occupancy()
    job = Job(args.config, tuple(args.overrides), args.nproc)
    job = job.alone() if args.debug else job
    cfg = check(job)
    check_folder(cfg.folder)
    threads = cores.choose(
        job.nproc, asked=cfg.train.threads, environ=os.environ, folder=cfg.folder, occupancy=occupancy
    )
    job = replace(job, threads=threads.count)
    ranks = f"{job.nproc} rank{'s' * (job.nproc > 1)}"
    print(f"{cfg.folder}: starting {ranks}, {threads}", file=sys.stderr)
    return submit.debug(job) if args.debug else submit.run(job)


def verify(args: argparse.Namespace) -> int:
    """Run some steps in one process, then on the layout, and compare; the exit code is the verdict."""
    from launch.local import submit

    occupancy = cores.Occupancy()
    job = Job(args.config, tuple(args.overrides), args.nproc, module="trainer.verify.verify")
    cfg = check(job)
    if cfg.train.fp8 != "none":
        # Its rounding, 1/16 an element, with scales that are a rank's own: docs/verify.md.
        raise ValueError(
            f"train.fp8={cfg.train.fp8}: two layouts round differently in 8 bits, by as much as a fault "
            "would show: verify with train.fp8=none, whose layout is the same"
        )
    check(job.reference())
    shape = (f"--steps={args.steps}", *(f"--{flag}" for flag in ("json", "comms") if getattr(args, flag)))
    with tempfile.TemporaryDirectory(prefix="germinal-verify-") as reference:

        def sized(job: Job, *words: str) -> Job:
            threads = cores.choose(
                job.nproc, asked=cfg.train.threads, environ=os.environ, folder=None, occupancy=occupancy
            )
            return replace(job, options=(*shape, *words), threads=threads.count)

        record, compare = sized(job.reference(), "record", reference), sized(job, "compare", reference)
        return submit.wait(record) or submit.wait(compare)


def plot(args: argparse.Namespace) -> int:
    """Draw the curves of one run, or of several over one another; prints where the picture is."""
    from trainer.metrics.curves import read_curves
    from trainer.metrics.plot import draw

    folders = [run_folder.find(folder) for folder in args.folders]
    picture = (
        Path(args.out) if args.out else Path("plot.png" if len(folders) > 1 else folders[0] / "loss.png")
    )
    if picture.suffix != ".png" or not picture.parent.is_dir():
        raise ValueError(f"--out {picture}: not a .png in a folder that exists")
    alike = len({folder.name for folder in folders}) < len(folders)  # then their paths tell them apart
    runs = [read_curves(at / "metrics.jsonl", str(at) if alike else at.name) for at in folders]
    draw(runs, picture, title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    print(picture)
    return 0


def check(job: Job) -> "RunConfig":
    """Everything about a job that can be known without torch; ValueError or RuntimeError, one line."""
    from data.corpus.manifest import read_manifest
    from trainer.config import run_config as config

    cfg = config.load(job.config, job.overrides)
    config.layout(cfg, job.nproc)
    paths = {f"data.sources[{index}].path": source.path for index, source in enumerate(cfg.data.sources)}
    paths |= {f"data.heldout[{index}].path": corpus.path for index, corpus in enumerate(cfg.data.heldout)}
    for key, path in paths.items():
        if "://" in path:  # remote: the run itself looks
            continue
        try:
            vocab = read_manifest(path).tokenizer.vocab
        except ValueError as error:
            raise ValueError(f"{key}={path!r}: {error}") from None
        if vocab > cfg.model.vocab:
            raise ValueError(
                f"model.vocab={cfg.model.vocab}: the tokenizer of {path} has {vocab} tokens; "
                f"set model.vocab to {vocab} or more"
            )
    return cfg


def generate(args: argparse.Namespace) -> int:
    """Become the process that continues the text, once there is a run to continue it with."""
    from launch.local import submit

    run_folder.find(args.folder)
    names = ("prompt", "max_tokens", "temperature", "top_p", "seed")
    # With "=", so that a prompt may begin with a dash.
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    if args.step is not None:
        options.append(f"--step={args.step}")
    submit.become(Command(python("trainer.generate.generate", args.folder, *options)))
