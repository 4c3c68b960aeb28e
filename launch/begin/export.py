"""`germinal export`: write a trained run as a folder that Hugging Face's transformers loads."""

import argparse
import re

from launch import options
from launch.job import EXPORT, ProcessCommand, python
from trainer.folder import run_folder

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_command(add: options.AddCommand) -> None:
    parser = add("export", "write a trained run as a folder that Hugging Face's transformers loads")
    options.add_run(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make; it must not exist")
    parser.add_argument(
        "--step", type=options.count, metavar="N", help="the checkpoint of step N (default: the newest)"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights (default fp32)"
    )
    parser.add_argument(
        "--shard-size",
        type=shard_size,
        metavar="SIZE",
        help="of a file of weights, at most, such as 500MB (default 5GB)",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of a run that trained LoRA: the whole model, with the branches in its matrices, not them alone",
    )
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        help="what germinal evaluate RUN --out FILE wrote of that checkpoint: its tables go into the card",
    )
    parser.set_defaults(run=export)


def shard_size(text: str) -> int:
    """Type of an option: a size in bytes, such as 500MB."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]?B?)", text.upper())
    if not match or match[2] not in UNITS or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 5GB")
    return int(match[1]) * UNITS[match[2]]


def export(args: argparse.Namespace) -> int:
    """Replace this process by the one that writes the folder, where RUN is a run folder."""
    from launch.local import run

    run_folder.find(args.folder)
    words = [f"--out={args.out}", f"--dtype={args.dtype}"]
    if args.shard_size is not None:
        words.append(f"--shard-bytes={args.shard_size}")
    if args.step is not None:
        words.append(f"--step={args.step}")
    if args.evaluation:
        words.append(f"--evaluation={args.evaluation}")
    if args.merge:
        words.append("--merge")
    run.become(ProcessCommand(python(EXPORT, args.folder, *words)))
