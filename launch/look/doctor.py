"""`germinal doctor`: is this machine fit to train, and with --nodes every node of an allocation?"""

import argparse
import os
from pathlib import Path

from launch import options

FOLDER = "runs"


def add_command(add: options.AddCommand) -> None:
    parser = add("doctor", "is this machine, or every node of an allocation, fit to train? says what to mend")
    parser.add_argument(
        "--folder",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder of runs, a run or a corpus, whose disk is examined; may be repeated (default: runs)",
    )
    options.add_json(parser)
    parser.set_defaults(run=doctor)


def doctor(args: argparse.Namespace) -> int:
    """Examine, and print what was found; return 1 if something is wrong enough for a run to fail."""
    from launch.doctor import one_machine, report
    from launch.doctor.check import Circumstances
    from launch.doctor.finding import Level, worst

    args.started()
    folders = tuple(folder.absolute() for folder in args.folder or [Path(FOLDER)])
    findings = []
    for finding in one_machine.examine(Circumstances(folders, dict(os.environ))):
        findings.append(finding)
        if not args.json:
            report.show(finding)
    report.document(findings) if args.json else report.conclude(findings)
    return int(worst(findings) == Level.ERROR)
