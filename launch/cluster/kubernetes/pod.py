"""The ranks of one pod of an indexed Job: `python -m launch.cluster.kubernetes.pod CONFIG NODES NPROC HOST
PORT`.

JOB_COMPLETION_INDEX says which pod this is. By the exit code the Job decides what follows (`manifest`): it is
that of the ranks, or 75 where they failed after a new checkpoint. A Job counts the failures of its whole
life, and a run of weeks may fail more often than `supervise.restarts` says, which a new checkpoint refills.
"""

import os
import sys
from collections.abc import Mapping

from common.exit_codes import ASKED_TO_STOP, DONE, STOPPED, WRONG
from common.standard_error import complain, write_line
from launch.job import RANK, ProcessCommand, python
from launch.supervise.evidence import newest_saved


def main(arguments: list[str]) -> int:
    """Run the ranks of this pod; return their exit code."""
    from launch.local.supervisor import supervise
    from trainer.config import reading

    config, nodes, nproc, host, port = arguments
    try:
        commands = rank_commands(config, int(nodes), int(nproc), host, port, os.environ)
        folder = reading.load(config).folder
    except ValueError as error:
        return complain(error, WRONG)
    before = newest_saved(folder)
    code = supervise(commands, first_rank=int(commands[0].env["RANK"])).show_error()
    if code in (DONE, WRONG, *ASKED_TO_STOP) or newest_saved(folder) <= before:
        return code
    write_line(f"exit code {STOPPED} instead of {code}, for a checkpoint was saved: not counted as a failure")
    return STOPPED


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
