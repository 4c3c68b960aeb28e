"""The command of every rank of a submission, in its container where it has one."""

from collections.abc import Mapping

from launch.cluster.submission import Submission


def rank_words(submission: Submission) -> tuple[list[str], list[str]]:
    """Return (options of srun, the words of a rank's command)."""
    container = submission.cluster.container
    if not container.image:
        return [], _rank(submission.python, submission)
    folders = (submission.workdir, submission.run_folder, submission.code)
    mounts = [*dict.fromkeys(f"{folder}:{folder}" for folder in folders if folder), *container.mounts]
    words = _rank(container.python, submission)
    if container.runtime == "pyxis":
        image = [f"--container-image={container.image}", f"--container-workdir={submission.workdir}"]
        return [*image, f"--container-mounts={','.join(mounts)}"], words
    options = [f"--bind={mount}" for mount in mounts]
    options += ["--nv"] if submission.cluster.gpus_per_node else []
    start = [container.runtime, "exec", f"--pwd={submission.workdir}", *options, container.image]
    return [], [*start, *words]


def _rank(python: str, submission: Submission) -> list[str]:
    return [python, "-P", "-m", "launch.cli", "rank", submission.config]


def rank_environment(submission: Submission, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of srun, which every rank inherits."""
    # The batch step tells others of the run's end, not rank 0.
    return {**environ, "GERMINAL_SUPERVISED": "1", **submission.cluster.env}


def allocated_cpus(submission: Submission, environ: Mapping[str, str]) -> int:
    """Return the CPUs of a rank; 0 where neither the run nor the job says. srun does not ask the job."""
    told = environ.get("SLURM_CPUS_PER_TASK", "")
    return submission.cluster.cpus_per_task or (int(told) if told.isdecimal() else 0)
