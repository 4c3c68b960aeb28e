"""Which nodes there are, and the command that starts the doctor's process on each of them."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from parallel.world import slurm

MEMBER = "launch.doctor.nodes.member"


def allocated(environ: Mapping[str, str]) -> list[str]:
    """The nodes of the SLURM job that this process belongs to.

    ValueError outside a job, and in one of several tasks of a step.
    """
    nodes = slurm.expand(environ.get("SLURM_JOB_NODELIST", ""))
    if "SLURM_JOB_ID" not in environ or not nodes:
        raise ValueError(
            "--nodes: not in an allocation: `salloc -N 2 germinal doctor --nodes`, or the same in a batch "
            "script; or give the hosts, which are reached by ssh: --hosts a,b"
        )
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if slurm.is_task_of_srun(environ) and tasks != "1":
        raise ValueError(f"--nodes: one of {tasks} tasks of srun; start it once, and not by srun")
    return nodes


def by_srun(host: str, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the srun that starts the doctor's process on one node of the job.

    One srun a node: a node that does not answer then takes no other along. The step may share the
    allocation's CPUs with other steps, and gets all of them.
    """
    options = [
        f"--jobid={environ['SLURM_JOB_ID']}",
        *("--nodes=1", "--ntasks=1", f"--nodelist={host}", "--overlap"),
        *("--cpu-bind=none", "--mpi=none", "--quiet", "--kill-on-bad-exit=0"),
    ]
    return ["srun", *options, sys.executable, "-P", "-m", MEMBER, host], slurm.clean(environ)


def by_ssh(host: str, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the ssh that starts the doctor's process on a host.

    Python and this project have to lie there where they lie here.
    """
    inner = ["env", *(f"{key}={environ[key]}" for key in ("PATH", "PYTHONPATH") if key in environ)]
    words = shlex.join([*inner, sys.executable, "-P", "-m", MEMBER, host])
    where = f"cd {shlex.quote(os.getcwd())} && exec {words}"
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
    return ["ssh", *options, "--", host, where], dict(environ)


def job_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What checks on the nodes need to know of the job, and `by_srun` and ssh keep from them."""
    also = ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR")
    return {key: value for key, value in environ.items() if key.startswith("SLURM_") or key in also}


def checked_hosts(text: str) -> Sequence[str]:
    """`a,b` of --hosts → [a, b]. ValueError where a name is empty, given twice, or would be an option."""
    hosts = text.split(",")
    wrong = [host for host in hosts if not host or host.startswith("-") or hosts.count(host) > 1]
    if wrong:
        raise ValueError(f"--hosts {text}: {wrong[0]!r} is not the name of one more host")
    return hosts
