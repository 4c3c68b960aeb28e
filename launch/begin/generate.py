"""`germinal generate`: continue a text with a trained run."""

import argparse

from launch import options
from launch.job import GENERATE, ProcessCommand, python
from trainer.folder import run_folder


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
    parser.set_defaults(run=generate)


def generate(args: argparse.Namespace) -> int:
    """Replace this process by the one that continues the text, where RUN is a run folder."""
    from launch.local import run

    run_folder.find(args.folder)
    names = ("prompt", "max_tokens", "temperature", "top_p", "seed")
    # With "=", so that a prompt may begin with a dash.
    words = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    if args.step is not None:
        words.append(f"--step={args.step}")
    run.become(ProcessCommand(python(GENERATE, args.folder, *words)))
