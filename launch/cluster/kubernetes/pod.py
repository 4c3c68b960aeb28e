"""The ranks of one pod of an indexed Job: `python -m launch.cluster.kubernetes.pod CONFIG NODES NPROC HOST
PORT`.

JOB_COMPLETION_INDEX says which pod this is. The exit code is that of the ranks, by which the Job decides what
follows (`manifest`).
"""

import os
import sys
from collections.abc import Mapping

from common.standard_error import complain
from launch.job import RANK, ProcessCommand, python


def main(arguments: list[str]) -> int:
    """Run the ranks of this pod; return their exit code."""
    from launch.local.supervisor import supervise

    config, nodes, nproc, host, port = arguments
    try:
        commands = rank_commands(config, int(nodes), int(nproc), host, port, os.environ)
    except ValueError as error:
        return complain(error, 2)
    return supervise(commands, first_rank=int(commands[0].env["RANK"])).show_error()


def rank_commands(
    config: str, nodes: int, nproc: int, host: str, port: str, environ: Mapping[str, str]
) -> list[ProcessCommand]:
    """Return the commands of this pod's ranks.

    config: path of the run's config.
    nodes, nproc: pods, and ranks a pod.
    host, port: where rank 0 is met.
    environ: of this process.
    """
    index = environ.get("JOB_COMPLETION_INDEX", "")
    if not index.isdecimal() or int(index) >= nodes:
        raise ValueError(
            f"JOB_COMPLETION_INDEX={index!r}: not the index of one of {nodes} pods: this is started by an "
            "indexed Job, see `germinal submit --backend kubernetes --dry-run`"
        )
    return [
        ProcessCommand(
            python(RANK, config),
            {
                "RANK": str(int(index) * nproc + local),
                "WORLD_SIZE": str(nodes * nproc),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(nproc),
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
            },
        )
        for local in range(nproc)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
