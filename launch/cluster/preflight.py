"""What is checked of a submission before anything is written or sent, without torch: one line an error."""

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from common.hosts.mounts import mount_of
from launch.cluster import script, slurm
from launch.cluster.cluster import Cluster

# File systems that other machines do not see.
LOCAL = ("tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "apfs", "hfs")


def check(cluster: Cluster, environ: Mapping[str, str], *, dry: bool) -> None:
    """Check what the cluster file and the options ask for.

    dry: nothing is sent, so SLURM's programs need not be here.

    Raises:
        ValueError: a value that the backend cannot hold, or that contradicts another.
        RuntimeError: sbatch is not here.
    """
    for name in cluster.env:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII):
            raise ValueError(f"env.{name!r}: no name of an environment variable: letters, digits and _")
    for name, value in {
        **cluster.env,
        "python": cluster.python,
        "container.image": cluster.container.image,
    }.items():
        if "\0" in value:
            raise ValueError(f"{name}={value!r}: has a NUL character, which no argument can hold")
    if cluster.container.image.startswith("-"):
        raise ValueError(f"container.image={cluster.container.image!r}: an image, not an option")
    for mount in cluster.container.mounts:
        if not re.fullmatch(r"[^,:-][^,:]*(:[^,:]+){0,2}", mount):
            raise ValueError(f"container.mounts: {mount!r}: not HOST or HOST:CONTAINER, without commas")
    if cluster.backend == "local":
        _check_local(cluster)
    elif cluster.backend == "kubernetes":
        _check_kubernetes(cluster, dry=dry)
    else:
        script.check(cluster)
        if not dry:
            _check_slurm(cluster, environ)


def check_folder(folder: Path, cluster: Cluster) -> None:
    """Check that SLURM and PYTHONPATH can hold the path of the run folder; `folder` is absolute."""
    if cluster.backend == "kubernetes":
        return
    if not str(folder).isprintable() or "\\" in str(folder):
        raise ValueError(
            f"run_dir={str(folder)!r}: a backslash or a control character in the path of a job's output, "
            "which SLURM reads as a pattern: set run_dir to another folder"
        )
    for path in (str(folder), os.getcwd()) if cluster.container.image else ():
        if "," in path or ":" in path:
            raise ValueError(
                f"{path}: a container cannot mount a path with a comma or a colon: use another folder"
            )
    if ":" in str(folder) and cluster.code == "copy":
        raise ValueError(
            f"run_dir={folder}: PYTHONPATH cannot hold a path with a colon, so the job could not run the "
            "copy of the code in it: set run_dir to another folder, or code: installed in the cluster file"
        )


def not_shared(folder: Path, cluster: Cluster) -> str:
    """Return a warning where other machines probably do not see the run folder; "" where all is well."""
    if cluster.backend != "slurm":
        return ""
    mount = mount_of(folder)
    found = mount.kind if mount else ""
    on_tmp = (
        folder.is_relative_to("/tmp") or folder.is_relative_to("/var/tmp") or folder.is_relative_to("/dev")
    )
    if not on_tmp and found not in LOCAL:
        return ""
    where = "in a folder of this machine's own" if on_tmp else f"on a disk of this machine ({found})"
    return (
        f"warning: {folder} seems to lie {where}: a job on another machine would not find it: set run_dir to "
        "a folder on the cluster's shared file system"
    )


def uneven_gpus(cluster: Cluster) -> str:
    """Return a warning where a node has another number of ranks than of GPUs; "" where it has not."""
    number = cluster.gpus_per_node.rpartition(":")[2]
    if not number.isdecimal() or int(number) in (0, cluster.nproc):
        return ""
    return (
        f"warning: gpus_per_node={cluster.gpus_per_node}, nproc={cluster.nproc}: a rank uses one GPU, so "
        + ("GPUs stay idle" if int(number) > cluster.nproc else "ranks would have to share one")
        + ": give both the same number"
    )


def _check_slurm(cluster: Cluster, environ: Mapping[str, str]) -> None:
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        raise RuntimeError(
            "sbatch: no such program here: submit from a login node of the cluster, look with --dry-run at "
            "what would be sent, or give --backend local"
        )
    known = slurm.partitions(environ)
    asked = [name for name in cluster.partition.split(",") if name]
    for name in asked if known else ():
        if name not in known:
            raise ValueError(f"partition={name}: there is no such partition: known: {', '.join(known)}")
    for name in asked:
        limit, nodes = known.get(name, ("", 0))
        most = _limit_seconds(limit)
        seconds = script.time_seconds(cluster.time)
        if seconds and most and seconds > most:
            raise ValueError(
                f"time={cluster.time}: more than the partition {name} allows, {limit}: the job would wait "
                "for ever"
            )
        wanted = cluster.nodes + cluster.spare_nodes
        if nodes and wanted > nodes:
            raise ValueError(f"nodes={wanted}: the partition {name} has {nodes}")


def _limit_seconds(limit: str) -> int | None:
    """Return a partition's time limit, as sinfo prints it; None where it has none."""
    try:
        return script.time_seconds(limit)
    except ValueError:  # infinite, n/a
        return None


def _check_local(cluster: Cluster) -> None:
    if cluster.nodes != 1 or cluster.spare_nodes:
        raise ValueError(
            f"nodes={cluster.nodes + cluster.spare_nodes}: --backend local is this one machine: give "
            "--nproc, or another backend"
        )
    if cluster.container.image:
        raise ValueError(
            "container: --backend local starts `germinal train` as it is: run that in the container"
        )


def _check_kubernetes(cluster: Cluster, *, dry: bool) -> None:
    missing = []
    if not dry:
        missing.append(
            "--dry-run (a manifest is written and nothing is sent: `germinal submit … --dry-run | kubectl "
            "apply -f -`)"
        )
    if not cluster.container.image:
        missing.append("container.image (--container IMAGE, with germinal installed in it)")
    if not cluster.kubernetes.claim:
        missing.append(
            "kubernetes.claim in a cluster file (--cluster FILE; the PersistentVolumeClaim, ReadWriteMany, "
            "that holds corpora and runs)"
        )
    if missing:
        raise ValueError(f"--backend kubernetes: missing: {', '.join(missing)}")
    if cluster.spare_nodes:
        raise ValueError("spare_nodes: Kubernetes itself starts a pod that was lost on another machine")
    if ":" in cluster.gpus_per_node or (not cluster.gpus_per_node.isdecimal() and cluster.gpus_per_node):
        raise ValueError(
            f"gpus_per_node={cluster.gpus_per_node}: a number; kubernetes.gpu names the resource"
        )
    if re.fullmatch(r"[0-9]*", cluster.memory) is None and not re.fullmatch(
        r"[0-9]+[KMGT]i?", cluster.memory
    ):
        raise ValueError(f"memory={cluster.memory!r}: not a quantity such as 64Gi")


def warn(line: str) -> None:
    """Print a warning on standard error."""
    if line:
        print(line, file=sys.stderr, flush=True)


def interpreter(cluster: Cluster) -> str:
    """Return the interpreter on the nodes: that of the cluster file, or this process's own, as an absolute
    path.
    """
    return cluster.python or os.path.abspath(sys.executable)
