"""`germinal evaluate`: what trained runs can do, on any layout."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from launch import options
from launch.checks import check_alone
from launch.job import EVALUATE, Job
from trainer.process import cores

REPEATED = ("set", "choices", "images", "bias", "tasks")
SINGLE = ("prompts", "shots", "shots_from", "seed", "include", "limit", "step", "out")

OF_OTHERS = {
    "shots_from": ("choices",),
    "shots": ("choices", "tasks"),
    "include": ("tasks",),
    "limit": ("tasks",),
}
"""Options that say something only with others."""


def add_command(add: options.AddCommand) -> None:
    parser = add("evaluate", "loss and bits per byte by held-out set; multiple choice, bias, tasks")
    parser.add_argument(
        "words", metavar="RUN", nargs="+", help="run folders, or Hugging Face folders; key=value: the layout"
    )
    parser.add_argument(
        "--nproc", type=options.count, default=1, metavar="N", help="ranks on this machine (default 1)"
    )
    parser.add_argument(
        "--step", type=options.count, metavar="N", help="the checkpoint of step N (default: the newest)"
    )
    add_questions(parser)
    parser.add_argument("--out", default="", metavar="FILE", help="for the JSON document; tables beside it")
    options.add_json(parser)
    parser.set_defaults(run=evaluate, rest="words")


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add the options that say on what runs are examined."""
    group = parser.add_argument_group("what on", "besides the held-out sets of each run's config")
    for option, metavar, about in (
        ("--set", "NAME=DIR", "another corpus as a held-out set"),
        ("--choices", "NAME=FILE", "questions of multiple choice: a JSON object a line"),
        ("--images", "NAME=DIR", "labelled pictures, classified by --prompts"),
        ("--bias", "NAME=FILE", "paired sentences that differ in one term"),
        ("--tasks", "NAME,…", "lm-evaluation-harness's tasks"),
    ):
        group.add_argument(option, action="append", default=[], metavar=metavar, help=f"{about}; repeatable")
    add = group.add_argument
    add("--prompts", default="", metavar="FILE", help="captions of the classes of --images")
    add("--shots", type=options.integer, default=0, metavar="K", help="solved questions before each one")
    add("--shots-from", default="", metavar="FILE", help="to draw them from (default: the questions' own)")
    add("--seed", type=options.integer, default=0, metavar="N", help="of these draws")
    add("--include", default="", metavar="DIR", help="folder with tasks of one's own for --tasks")
    add("--limit", type=options.integer, default=0, metavar="N", help="documents of each of --tasks; 0: all")


def evaluate(args: argparse.Namespace) -> int:
    """Check what can be checked at once; then run the ranks."""
    from launch.local import run
    from trainer.config import evaluating, of_folder

    check_alone(os.environ)
    runs, overrides = evaluating.split_words(args.words)
    check(args)
    folders = [of_folder.find(folder) for folder in runs]
    cfgs = [evaluating.load(folder, overrides, args.nproc) for folder in folders]
    for folder, cfg in zip(folders, cfgs):
        if not cfg.data.heldout and not any(getattr(args, name) for name in REPEATED):
            raise ValueError(
                f"{folder}: names no held-out set, and nothing else is asked for: give --set NAME=DIR, or "
                "--choices, --images, --bias or --tasks"
            )
    words = [f"--{name.replace('_', '-')}={value}" for name in REPEATED for value in getattr(args, name)]
    given = ((name, getattr(args, name)) for name in SINGLE)
    words += [f"--{name.replace('_', '-')}={value}" for name, value in given if value not in ("", None)]
    words += ["--json"] * args.json
    job = Job(runs[0], (*runs[1:], *overrides), args.nproc, module=EVALUATE, options=tuple(words))
    threads = cores.choose(
        job.nproc, asked=cfgs[0].train.threads, environ=os.environ, folder=None, occupancy=cores.Occupancy()
    )
    return run.run_as_children(replace(job, threads=threads.count))


def check(args: argparse.Namespace) -> None:
    """Raise ValueError, one line, where a file is not there, or options do not go together."""
    from trainer.config.evaluating import named

    for name in REPEATED[:-1]:
        named(getattr(args, name), f"--{name}")
    for name in ("prompts", "shots_from", "include"):
        if (path := getattr(args, name)) and not Path(path).exists():
            raise ValueError(f"--{name.replace('_', '-')} {path} is not there")
    for name in ("shots", "limit"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} {getattr(args, name)}: must be 0 or more")
    for name, of in OF_OTHERS.items():
        if getattr(args, name) and not any(getattr(args, one) for one in of):
            option, needed = f"--{name.replace('_', '-')}", " or ".join(f"--{one}" for one in of)
            raise ValueError(f"{option} {getattr(args, name)}: there is no {needed} for it: leave it out")
    if args.shots_from and not args.shots:
        raise ValueError(f"--shots-from {args.shots_from}: needs --shots K, how many of its questions")
    if bool(args.images) != bool(args.prompts):
        raise ValueError("--images needs --prompts, the captions of its classes, and the other way round")
    above = next((one for one in Path(args.out).resolve().parents if one.exists()), None)
    if args.out and above and not above.is_dir():
        raise ValueError(f"--out {args.out}: {above} is no folder: give another name")
    if args.out.endswith(".md"):
        raise ValueError(f"--out {args.out}: the JSON document's name; the tables go beside it, as .md")
