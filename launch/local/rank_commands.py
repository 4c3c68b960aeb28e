"""Job → the command of each of its ranks on this machine. Nothing is executed here."""

import socket
from collections.abc import Mapping

from launch.job import Job, ProcessCommand, python

# glibc gives large blocks back to the kernel at every free, and each step then faults their pages in again:
# keeping them took 11 % off a CPU step of the quickstart's model. Other allocators ignore these names.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def rank_commands(
    job: Job, *, environ: Mapping[str, str], meet_at: socket.socket | None = None
) -> list[ProcessCommand]:
    """Return one command a rank, in rank order.

    Args:
        environ: the environment that the commands will inherit.
        meet_at: a socket of this process that listens on the loopback interface; rank 0 takes it over, and
            the others connect to it. A single rank needs none.
    """
    commands = []
    for rank in range(job.nproc):
        # Stated for a single rank too: inside a SLURM job, the job's own rank variables would be found.
        env = {
            "RANK": str(rank),
            "WORLD_SIZE": str(job.nproc),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(job.nproc),
        }
        env |= {name: value for name, value in KEEP_MEMORY.items() if name not in environ}
        descriptors: tuple[int, ...] = ()
        if meet_at is not None and job.nproc > 1:
            env["GERMINAL_INIT"] = "tcp://{}:{}".format(*meet_at.getsockname())
            if rank == 0:
                descriptors = (meet_at.fileno(),)
                env["GERMINAL_LISTENER"] = str(meet_at.fileno())
        if job.threads and "OMP_NUM_THREADS" not in environ:
            env["OMP_NUM_THREADS"] = str(job.threads)  # PyTorch's default is all cores for every rank
        commands.append(ProcessCommand(python(job.module, *job.arguments), env, descriptors))
    return commands
