"""`germinal submit`: a run as a job of a batch system, checked here before it is sent."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.exit_codes import DONE, STOPPED
from common.standard_error import complain
from launch import options
from launch.cluster.cluster import BACKENDS

if TYPE_CHECKING:
    from launch.cluster.cluster import Cluster
    from launch.cluster.sending import Wish

# Options that set a key of the cluster file: (option, metavar, help). The others are in `_given`.
_KEYS = (
    ("time", "TIME", "limit of one job: 90 (minutes), 1:30:00, 2-0 (days-hours)"),
    ("partition", "NAME", "or several, with commas between them"),
    ("account", "NAME", "who is charged"),
    ("qos", "NAME", "quality of service"),
    ("constraint", "FEATURES", "that a node must have, such as a100&ib"),
    ("gpus-per-node", "N", "or TYPE:N"),
    ("memory", "SIZE", "of a node, such as 64G; 0: all of it"),
    ("python", "FILE", "interpreter on the nodes (default: the one that runs this command)"),
    ("code", "copy|installed", "copy: the job runs the code as it is now (default)"),
)
_COUNTS = (
    ("nodes", "machines (default 1)"),
    ("nproc", "ranks a node (default 1)"),
    ("spare-nodes", "machines held to take the place of one that fails (default 0)"),
    ("cpus-per-task", "CPUs a rank"),
    ("signal-seconds", "before the time limit the run is told to save (default 180)"),
)


def add_command(add: options.AddCommand) -> None:
    parser = add("submit", "run a config as a job: SLURM, this machine in the background, or Kubernetes")
    parser.usage = "germinal submit CONFIG [--backend slurm] [--nodes N] [--nproc M] [options] [key=value…]"
    parser.add_argument("config", metavar="CONFIG", help=options.CONFIG)
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes one key of it")
    backend = (
        "default: the cluster file's, else slurm; kubernetes needs --dry-run and a cluster file with "
        "kubernetes.claim"
    )
    parser.add_argument("--backend", choices=BACKENDS, help=backend)
    where = "cluster file, or a name in configs/cluster/ (default: BACKEND.yaml there, if there is one)"
    parser.add_argument("--cluster", default="", metavar="FILE|NAME", help=where)
    parser.add_argument("--dry-run", action="store_true", help="check, show what would be sent, send nothing")

    group = parser.add_argument_group("over the cluster file")
    for name, about in _COUNTS:
        group.add_argument(f"--{name}", type=_number, metavar="N", help=about)
    for name, metavar, about in _KEYS:
        group.add_argument(f"--{name}", metavar=metavar, help=about)
    group.add_argument("--container", metavar="IMAGE", help="in which the ranks run")
    group.add_argument("--modules", action="append", metavar="NAME", help="to load; may be repeated")
    env = "environment variable of the ranks; may be repeated"
    group.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help=env)
    free = "further option of sbatch by its long name; may be repeated"
    group.add_argument("--sbatch", action="append", default=[], metavar="key=value", help=free)
    again = "neither after a preemption nor at the time limit"
    group.add_argument("--no-requeue", action="store_true", help=again)

    group = parser.add_argument_group("several jobs (slurm)")
    array = "one run a value, each with a name and a job of its own; given twice: every combination"
    group.add_argument("--array", action="append", default=[], metavar="key=v1,v2", help=array)
    group.add_argument(
        "--at-once", type=options.count, metavar="N", help="runs of an array at a time (default: all)"
    )
    chain = "jobs of the same run, each behind the other, where a cluster allows no requeue (default 1)"
    group.add_argument("--chain", type=options.count, default=1, metavar="N", help=chain)
    after = "start when this job, or this run's, has ended; may be repeated"
    group.add_argument("--after", action="append", default=[], metavar="JOB|RUN", help=after)
    parser.set_defaults(run=submit, rest="overrides")


def submit(args: argparse.Namespace) -> int:
    """Check config, cluster file and cluster; then send the jobs, or show them with --dry-run."""
    from launch.cluster import cluster as clusters
    from launch.cluster import preflight, sending
    from launch.cluster.elements import elements

    file = clusters.find(args.cluster, args.backend or "")
    cluster = clusters.read(file, _given(args))
    if cluster.backend != "slurm":
        _only_slurm(args, cluster.backend)
    preflight.check(cluster, os.environ, dry=args.dry_run)
    wishes = sending.wishes(args.config, args.overrides, elements(args.array), cluster)
    if file and (args.dry_run or not args.cluster):  # one that was found without being named
        print(f"cluster file: {file}", file=sys.stderr)
    if cluster.backend != "kubernetes":
        preflight.warn(preflight.not_shared(wishes[0].folder, cluster))
    preflight.warn(preflight.uneven_gpus(cluster))
    after = sending.resolve_after(args.after, os.environ)
    if args.dry_run:
        return _show(wishes, after)
    try:
        return _send(wishes, after, args)
    except sending.Busy as error:
        return complain(error, STOPPED)


def _send(wishes: "list[Wish]", after: list[str], args: argparse.Namespace) -> int:
    """Send every run; where one is refused, say which were sent before."""
    from launch.cluster import sending, submission

    lanes: list[list[str]] = []  # the jobs that are sent, as many at a time as may run at once
    first: Path | None = None
    for number, wish in enumerate(wishes):
        behind = lanes[number - args.at_once] if args.at_once and number >= args.at_once else after
        try:
            sub = sending.send(wish, after=behind, links=args.chain, like=first)
        except (RuntimeError, OSError):
            if number:
                rest = ", ".join(wish.config.name for wish in wishes[number:])
                print(f"{number} of {len(wishes)} runs were sent; not sent: {rest}", file=sys.stderr)
            raise
        first = first or Path(sub.folder)
        jobs = [job.job for job in submission.jobs(Path(sub.folder))]
        lanes.append(jobs[-1:])
        word = "process" if sub.cluster.backend == "local" else f"job{'s' * (len(jobs) > 1)}"
        print(f"{sub.run}: {word} {', '.join(jobs)}, {_size(wish.cluster)}; {wish.config.folder}")
    name = wishes[0].config.name
    print(f"`germinal follow {name}`, `status`, `logs`, `cancel`", file=sys.stderr)
    return DONE


def _show(wishes: "list[Wish]", after: list[str]) -> int:
    """Show what would be sent, on standard output; write nothing."""
    from launch.cluster import script, sending
    from launch.cluster.kubernetes import manifest

    if wishes[0].cluster.backend == "kubernetes":
        print(manifest.text(wishes), end="")
        return DONE
    for wish in wishes:
        sub = sending.planned(wish)
        if wish.cluster.backend == "local":
            print(f"# {sub.run}: germinal train {wish.config.folder} on {wish.cluster.nproc} ranks")
            continue
        words = sending.command(sub, after)
        print(f"# {sub.run}: {_size(wish.cluster)}; {wish.config.folder}\n{words}")
    if wishes[0].cluster.backend == "slurm":
        print(f"\n# {sub.folder}/script.sh, the same for every run:\n{script.TEXT}", end="")
    return DONE


def _size(cluster: "Cluster") -> str:
    nodes = f"{cluster.nodes} node{'s' * (cluster.nodes > 1)}"
    spare = f" and {cluster.spare_nodes} spare" if cluster.spare_nodes else ""
    return f"{nodes}{spare} of {cluster.nproc} rank{'s' * (cluster.nproc > 1)}"


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of the cluster file that options give: None for one that is not given."""
    names = ("backend", *(name.replace("-", "_") for name, *_ in (*_COUNTS, *_KEYS)))
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    given["modules"] = args.modules
    # The links of a chain take the place of a requeue.
    given["requeue"] = False if args.no_requeue or args.chain > 1 else None
    given["env"] = _pairs("--env", args.env, needs_value=True)
    given["sbatch"] = _pairs("--sbatch", args.sbatch, needs_value=False)
    given["container"] = {"image": args.container}
    return {key: value for key, value in given.items() if value not in ({}, {"image": None})}


def _pairs(option: str, words: list[str], *, needs_value: bool) -> Mapping[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or (needs_value and not equals):
            raise ValueError(f"{option} {word!r}: not {'NAME=VALUE' if needs_value else 'key=value'}")
        pairs[key.removeprefix("--")] = value
    return pairs


def _only_slurm(args: argparse.Namespace, backend: str) -> None:
    """Refuse what needs a queue."""
    for option, given in (("--chain", args.chain > 1), ("--after", args.after), ("--at-once", args.at_once)):
        if given:
            raise ValueError(f"{option}: needs a queue: --backend slurm, and this is {backend}")
    if args.array and backend == "local":
        raise ValueError("--array: --backend local would start all of them at once; it needs --backend slurm")


def _number(text: str) -> int:
    """Type of an option: an integer of at least 0; the cluster file's keys say more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return options.integer(text)
