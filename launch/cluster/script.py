"""The batch script, which is the same for every run, and the words that sbatch is given with it.

No value of a config or a command line is in the script's text: each reaches the script as one argument, and
sbatch as one `--option=value`, without a shell in between. The rest is in submission.json, which the batch
step reads.
"""

import re
from pathlib import Path

from launch.cluster.cluster import Cluster
from launch.cluster.submission import SCRIPT, Submission

TEXT = r"""#!/bin/bash
# Written by `germinal submit`; the text is the same for every run. What is run: submission.json in FOLDER.
# usage: script.sh FOLDER PYTHON CODE [MODULE...]     (CODE: first on PYTHONPATH, or empty)
folder=$1 python=$2 code=$3
shift 3
# SLURM's request to save (USR1), or one to end (TERM), may come before the batch step can take it. It is kept
# here, and repeated until the batch step ends, for nobody else knows when Python has started. The batch step
# counts it once.
asked=''
trap 'asked=1' USR1 TERM
if [ $# -gt 0 ] && ! type module >/dev/null 2>&1; then
    . /etc/profile >/dev/null 2>&1 # defines `module`, which a shell that is no login shell may lack
fi
for name in "$@"; do
    if ! module load "$name"; then
        printf 'error: module load %q failed on %s; see `module avail`\n' "$name" "$(hostname)" >&2
        exit 2
    fi
done
if [ -n "$code" ]; then
    export PYTHONPATH="$code${PYTHONPATH:+:$PYTHONPATH}"
fi
exec 4>&1
# The batch step's parent takes no signals, and writes the exit code into a pipe. Where a signal comes just
# when bash's `wait` has collected a process, bash loses its exit code and makes it 255.
exec 3< <(
    trap '' USR1 TERM # across exec, until the batch step's own handlers are there
    "$python" -P -m launch.cluster.batch "$folder" ${asked:+asked} >&4 4>&- &
    echo "$!"
    wait "$!"
    echo "$?"
)
read -r step <&3
until
    read -r -t 1 status <&3
    [ $? -le 128 ] # more: nothing came within the second
do
    [ -z "$asked" ] || kill -USR1 "$step" 2>/dev/null
done
exit "${status:-1}"
"""

# Options of sbatch that germinal sets itself → what to use for them.
OWN = {
    "job-name": "the job has the run's name: give name=… of the config",
    "output": "`germinal logs RUN` shows it",
    "error": "`germinal logs RUN` shows it",
    "input": "no rank reads standard input",
    "open-mode": "a requeued job appends to its log",
    "chdir": "the job runs in the directory in which it is submitted",
    "nodes": "give --nodes, or nodes: of the cluster file",
    "ntasks": "give --nodes and --nproc",
    "ntasks-per-node": "give --nproc, or nproc: of the cluster file",
    "time": "give --time, or time: of the cluster file",
    "partition": "give --partition, or partition: of the cluster file",
    "account": "give --account, or account: of the cluster file",
    "qos": "give --qos, or qos: of the cluster file",
    "constraint": "give --constraint, or constraint: of the cluster file",
    "gpus-per-node": "give --gpus-per-node, or gpus_per_node: of the cluster file",
    "cpus-per-task": "give --cpus-per-task, or cpus_per_task: of the cluster file",
    "mem": "give --memory, or memory: of the cluster file",
    "signal": "give signal_seconds: of the cluster file",
    "requeue": "give requeue: of the cluster file",
    "no-requeue": "give requeue: of the cluster file",
    "no-kill": "give spare_nodes: of the cluster file",
    "dependency": "give --after",
    "array": "give --array, which makes a run of each element",
    "clusters": "set SLURM_CLUSTERS, for squeue and scancel need it too",
    "wrap": "the script is germinal's own",
    "parsable": "germinal reads the job's id itself",
    "quiet": "germinal reads the job's id itself",
    "wait": "use `germinal follow RUN`",
    "test-only": "use --dry-run",
    "help": "see sbatch --help",
    "usage": "see sbatch --help",
    "version": "see sbatch --version",
}
EARLY_SECONDS = 60  # by which SLURM may send the signal of --signal too soon (sbatch(1))
_ABBREVIATES_NOTHING = ("gpus",)  # options of their own, though another's name begins with theirs


def sbatch(submission: Submission, *, after: list[str]) -> list[str]:
    """Return the words that send a job of the submission, which starts when the jobs `after` have ended."""
    folder, cluster = Path(submission.folder), submission.cluster
    log = str(folder).replace("%", "%%") + "/log-%j.txt"
    words = [
        "sbatch",
        "--parsable",
        f"--job-name={submission.run}",
        f"--output={log}",
        "--open-mode=append",
        f"--chdir={submission.workdir}",
        f"--nodes={cluster.nodes + cluster.spare_nodes}",
        f"--ntasks-per-node={cluster.nproc}",
        # To the batch step alone: the ranks get what that step sends them.
        f"--signal=B:USR1@{cluster.signal_seconds}",
        "--requeue" if cluster.requeue else "--no-requeue",
    ]
    # Without spare nodes, let SLURM do what it does at the loss of a node: end the job and requeue it.
    words += ["--no-kill"] if cluster.spare_nodes else []
    words += _optional(cluster)
    words += [f"--dependency=afterany:{':'.join(after)}"] if after else []
    words += [f"--{key}={value}" if value else f"--{key}" for key, value in cluster.sbatch.items()]
    return [*words, "--", *script(submission)]


def script(submission: Submission) -> list[str]:
    """Return the batch script and its arguments."""
    path = str(Path(submission.folder) / SCRIPT)
    return [path, submission.folder, submission.python, submission.code, *submission.cluster.modules]


def check(cluster: Cluster) -> None:
    """Raise ValueError, one line, where SLURM cannot hold a value or germinal sets an option itself."""
    for key, value in cluster.sbatch.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise ValueError(f"sbatch.{key!r}: not a long option of sbatch: write such as mail-type=END")
        own = next((name for name in OWN if name.startswith(key)), "")  # sbatch takes abbreviations
        if own and key not in _ABBREVIATES_NOTHING:
            raise ValueError(f"sbatch.{key}={value}: germinal sets --{own} itself: {OWN[own]}")
    given = {f"sbatch.{key}": value for key, value in cluster.sbatch.items()}
    names = ("time", "partition", "account", "qos", "constraint", "gpus_per_node", "memory")
    given |= {name: str(getattr(cluster, name)) for name in names}
    for key, value in given.items():
        if not value.isprintable() or value != value.strip():
            raise ValueError(
                f"{key}={value!r}: has a line break, a control character or space around it, which sbatch "
                "cannot hold"
            )
    _check_forms(cluster)
    for name in cluster.modules:
        if not name.isprintable() or name.startswith("-") or not name.strip():
            raise ValueError(f"modules: {name!r} is no name of a module")


def _check_forms(cluster: Cluster) -> None:
    """Check the values whose forms sbatch documents."""
    forms = {
        "gpus_per_node": (r"([^\s:,]+:)?[0-9]+", "a number such as 8, or TYPE:NUMBER such as a100:8"),
        "memory": (r"[0-9]+[KMGT]?", "a number of megabytes, or such as 64G"),
    }
    for key, (form, meaning) in forms.items():
        value = str(getattr(cluster, key))
        if value and not re.fullmatch(form, value):
            raise ValueError(f"{key}={value!r}: not {meaning}")
    seconds = time_seconds(cluster.time)
    if seconds is not None and seconds <= cluster.signal_seconds + EARLY_SECONDS:
        raise ValueError(
            f"time={cluster.time}: the run is told to save signal_seconds={cluster.signal_seconds} before "
            f"the limit, and by SLURM up to {EARLY_SECONDS} s earlier, which would be at its start: give "
            "more time, or lower signal_seconds"
        )


def time_seconds(time: str) -> int | None:
    """Return the seconds of a time limit as sbatch reads it; None for an empty or an unlimited one.

    ValueError, one line, where it is none: sbatch would read `1d` or `90s` as something else, or not at all.
    """
    if not time or time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    with_days = re.fullmatch(r"(\d{1,5})-(\d{1,4})(?::(\d{1,4})(?::(\d{1,4}))?)?", time, re.ASCII)
    if with_days:
        days, hours, minutes, seconds = (int(part or 0) for part in with_days.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    without = re.fullmatch(r"(?:(\d{1,5}):(?=\d+:))?(\d{1,7})(?::(\d{1,4}))?", time, re.ASCII)
    if without is None:
        raise ValueError(
            f"time={time!r}: not a time limit: write minutes (90), HOURS:MINUTES:SECONDS (1:30:00) or "
            "DAYS-HOURS (2-0)"
        )
    hours, minutes, seconds = (int(part or 0) for part in without.groups())
    return (hours * 60 + minutes) * 60 + seconds


def _optional(cluster: Cluster) -> list[str]:
    """Return the options of what the cluster file or the command line gives."""
    options = {
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "gpus-per-node": cluster.gpus_per_node,
        "cpus-per-task": str(cluster.cpus_per_task or ""),
        "mem": cluster.memory,
    }
    return [f"--{name}={value}" for name, value in options.items() if value]
