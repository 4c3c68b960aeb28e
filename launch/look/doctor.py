"""`germinal doctor`: is this machine fit to train, and with --nodes every node of an allocation?"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch import options

if TYPE_CHECKING:
    from launch.doctor.finding import Finding

FOLDER = "runs"


def add_command(add: options.AddCommand) -> None:
    parser = add("doctor", "is this machine, or every node of an allocation, fit to train? says what to mend")
    parser.add_argument(
        "--nodes", action="store_true", help="every node of the SLURM job that this is started in, by srun"
    )
    parser.add_argument("--hosts", metavar="A,B", default="", help="these hosts, by ssh")
    parser.add_argument(
        "--folder",
        action="append",
        type=Path,
        metavar="DIR",
        help="a folder of runs, a run or a corpus, whose disk is examined; may be repeated (default: runs)",
    )
    parser.add_argument(
        "--exclude-file",
        type=Path,
        metavar="FILE",
        help="with --nodes or --hosts: where to write the slow and broken nodes, one a line",
    )
    options.add_json(parser)
    parser.set_defaults(run=doctor)


def doctor(args: argparse.Namespace) -> int:
    """Examine, and print what was found; return 1 if something is wrong enough for a run to fail."""
    from launch.doctor import report
    from launch.doctor.finding import Level, worst

    several = args.nodes or bool(args.hosts)
    if args.nodes and args.hosts:
        raise ValueError("--nodes and --hosts: give one of them, for one allocation or for hosts by name")
    if args.exclude_file and not several:
        raise ValueError("--exclude-file: nodes are compared with --nodes or --hosts")
    args.started()
    folders = tuple(folder.absolute() for folder in args.folder or [Path(FOLDER)])
    findings, more = _nodes(args, folders) if several else (_one_machine(args, folders), {})
    report.document(findings, **more) if args.json else report.conclude(findings)
    return int(worst(findings) == Level.ERROR)


def _one_machine(args: argparse.Namespace, folders: tuple[Path, ...]) -> "list[Finding]":
    from launch.doctor import one_machine, report
    from launch.doctor.check import Circumstances

    findings = []
    for finding in one_machine.examine(Circumstances(folders, dict(os.environ))):
        findings.append(finding)
        if not args.json:
            report.show(finding)
    return findings


def _nodes(
    args: argparse.Namespace, folders: tuple[Path, ...]
) -> "tuple[list[Finding], dict[str, list[str]]]":
    from launch.doctor import report
    from launch.doctor.nodes import commands
    from launch.doctor.nodes.channel import Channel
    from launch.doctor.nodes.examination import Examination

    hosts = commands.checked_hosts(args.hosts) if args.hosts else commands.allocated(os.environ)
    start = commands.by_ssh if args.hosts else commands.by_srun
    with Channel({host: start(host, os.environ) for host in hosts}) as channel:
        examination = Examination(
            channel,
            hosts,
            show=(lambda findings: None) if args.json else report.show_together,
            say=lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True),
        )
        examination.run(folders, commands.job_variables(os.environ))
    left_out = examination.to_leave_out
    if args.exclude_file:
        args.exclude_file.write_text("".join(f"{host}\n" for host in left_out))
    if not args.json:
        report.figures(examination.findings, hosts)
        if left_out:
            print(f"leave out: --exclude={','.join(left_out)}")
    return examination.findings, {"hosts": list(hosts), "exclude": left_out}
