"""`germinal plot`: curves of a run, or of several over one another, as a PNG."""

import argparse
import sys
from pathlib import Path

from launch import options
from trainer.folder import run_folder


def add_command(add: options.AddCommand) -> None:
    parser = add("plot", "curves of a run, or of several over one another, as a PNG")
    parser.add_argument("folders", metavar="RUN", nargs="+", help="run folders, runs/NAME")
    what = "the picture (default: loss.png in the run folder; of several runs, plot.png here)"
    parser.add_argument("--out", default="", metavar="FILE", help=what)
    parser.set_defaults(run=plot, rest="folders")


def plot(args: argparse.Namespace) -> int:
    """Draw the curves of one run, or of several over one another; print the path of the picture."""
    from trainer.metrics.curves import read_curves
    from trainer.metrics.plot import draw

    folders = [run_folder.find(folder) for folder in args.folders]
    picture = (
        Path(args.out) if args.out else Path("plot.png" if len(folders) > 1 else folders[0] / "loss.png")
    )
    if picture.suffix != ".png" or not picture.parent.is_dir():
        raise ValueError(f"--out {picture}: not a .png in a folder that exists")
    names_clash = len({folder.name for folder in folders}) < len(folders)  # then paths tell the runs apart
    begun = [folder for folder in folders if len(folders) == 1 or (folder / "metrics.jsonl").exists()]
    if not begun:
        raise RuntimeError(f"none of {len(folders)} folders has a metrics.jsonl: have these runs begun?")
    for folder in folders:
        if folder not in begun:
            print(f"{folder}: left out, it has no metrics.jsonl", file=sys.stderr)
    runs = [read_curves(at / "metrics.jsonl", str(at) if names_clash else at.name) for at in begun]
    draw(runs, picture, title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    print(picture)
    return 0
