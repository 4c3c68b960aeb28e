"""Job → the command of each of its ranks on this machine. Nothing is executed here."""

from collections.abc import Mapping

from launch.job import Job, ProcessCommand, python

# glibc gives large blocks back to the kernel at every free, and each step then faults their pages in again:
# keeping them took 11 % off a CPU step of the quickstart's model. Other allocators ignore these names.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


def rank_commands(job: Job, *, rendezvous: str, environ: Mapping[str, str]) -> list[ProcessCommand]:
    """Return one command a rank, in rank order.

    Args:
        rendezvous: address at which the ranks meet, file:// or tcp://; unused by a single rank.
        environ: the environment that the commands will inherit.
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
        if job.nproc > 1:
            env["GERMINAL_INIT"] = rendezvous
        if job.threads and "OMP_NUM_THREADS" not in environ:
            env["OMP_NUM_THREADS"] = str(job.threads)  # PyTorch's default is all cores for every rank
        commands.append(ProcessCommand(python(job.module, *job.arguments), env))
    return commands
