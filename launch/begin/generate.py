"""`germinal generate`: continue a text with a trained run."""

import argparse
import os
from pathlib import Path

from launch import options
from launch.checks import check_alone
from launch.job import GENERATE, Job, ProcessCommand, python
from trainer.process import cores


def add_command(add: options.AddCommand) -> None:
    parser = add("generate", "continue a text with a trained run")
    options.add_run(parser)
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="text to continue (empty: a new document)"
    )
    parser.add_argument("--max-tokens", type=options.count, default=200, metavar="N", help="default 200")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="X", help="0: the likeliest (default 0.8)"
    )
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="X", help="1: among all tokens (default 0.95)"
    )
    parser.add_argument(
        "--seed", type=options.integer, default=0, metavar="N", help="another seed, another text"
    )
    parser.add_argument(
        "--step", type=options.count, metavar="N", help="the checkpoint of step N (default: the newest)"
    )
    parser.add_argument(
        "--prompts", default="", metavar="FILE", help="a prompt a line: a text, or JSON; prints JSON lines"
    )
    parser.add_argument(
        "--batch", type=options.count, default=8, metavar="N", help="of --prompts at once (default 8)"
    )
    parser.add_argument(
        "--nproc", type=options.count, default=1, metavar="N", help="ranks that share the model (default 1)"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="the layout")
    parser.set_defaults(run=generate, rest="overrides")


def generate(args: argparse.Namespace) -> int:
    """Replace this process by the one that continues the text, where RUN is a run folder; or run the ranks
    that share its model.
    """
    from launch.local import run
    from trainer.config import evaluating, of_folder

    folder = of_folder.find(args.folder)
    if args.prompts and not Path(args.prompts).is_file():
        raise ValueError(f"--prompts {args.prompts} is not there")
    names = ("prompt", "max_tokens", "temperature", "top_p", "seed", "batch")
    # With "=", so that a prompt may begin with a dash.
    words = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    if args.step is not None:
        words.append(f"--step={args.step}")
    if args.prompts:
        words.append(f"--prompts={args.prompts}")
    if args.nproc == 1:
        run.become(ProcessCommand(python(GENERATE, args.folder, *args.overrides, *words)))
    check_alone(os.environ)
    cfg = evaluating.load_to_decode(folder, args.overrides, args.nproc)
    threads = cores.choose(
        args.nproc,
        asked=cfg.train.threads,
        environ=os.environ,
        folder=None,
        occupancy=cores.Occupancy(),
    )
    options = ("--ranks", *words)
    return run.run_as_children(
        Job(args.folder, tuple(args.overrides), args.nproc, GENERATE, options, threads.count)
    )
