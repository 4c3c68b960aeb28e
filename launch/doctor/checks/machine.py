"""Cores, threads, memory, limits, and settings of the environment that change how torch computes."""

import os
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from launch.doctor.check import Circumstances
from launch.doctor.finding import Finding, note, ok, warning
from launch.tables import size
from trainer.process import cores

GIB = 1 << 30
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES = GIB
OPEN_FILES = 4096
PROCESSES = 1024
BUSY_SHARE = 0.25  # of the cores, kept busy by others, from which on a measurement means little

# Variable → the values that matter (None: any), and what they do.
SETTINGS: dict[str, tuple[str | None, str]] = {
    "CUDA_LAUNCH_BLOCKING": ("1", "each GPU kernel is waited for, which is slow"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "each collective is compared among the ranks, which is slow"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": ("1", "each tensor is allocated anew by the driver, which is slow"),
    "NCCL_P2P_DISABLE": ("1", "GPUs of one machine send through the host's memory"),
    "NCCL_SHM_DISABLE": ("1", "ranks of one machine send through the network"),
    "NCCL_IB_DISABLE": ("1", "ranks of several machines send through sockets instead of InfiniBand"),
    "NVIDIA_TF32_OVERRIDE": ("0", "fp32 matrix products do not use TF32, whatever the config says"),
    "GOMP_CPU_AFFINITY": (None, "threads of every rank are bound to the same cores"),
    "KMP_AFFINITY": (None, "threads of every rank may be bound to the same cores"),
}


def check(at: Circumstances) -> Iterator[Finding]:
    """Everything about this machine that is not a GPU, a file system or a network."""
    occupancy = cores.Occupancy()
    yield from settings(at.environ)
    yield from limits(resource.getrlimit)
    yield from shared_memory(SHARED_MEMORY)
    yield from memory()
    yield from threads(at.environ, allowed=len(cores.allowed()), usable=cores.usable())
    yield from others(occupancy.busy(), len(cores.allowed()))


def threads(environ: Mapping[str, str], *, allowed: int, usable: cores.Cores) -> Iterator[Finding]:
    """Cores that this process may use, against what SLURM and OMP_NUM_THREADS say."""
    yield ok("machine.cores", f"{usable.why}", measured={"cores": usable.count})
    if usable.count < allowed:
        text = f"{usable.why}, though {allowed} cores are visible: further threads have to wait for a core"
        yield note(
            "machine.quota", text, "ask for more CPUs, or leave OMP_NUM_THREADS unset: ranks take the quota"
        )
    asked = environ.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdecimal() and allowed < int(asked):
        text = f"SLURM_CPUS_PER_TASK={asked}, and this process may use {allowed} cores"
        yield warning(
            "machine.cpus_per_task",
            text,
            "give srun its own --cpus-per-task: since SLURM 22.05 it does "
            "not take sbatch's; see --cpu-bind too",
        )
    each = environ.get("OMP_NUM_THREADS", "")
    tasks = tasks_on_node(environ)
    if each.isdecimal() and int(each) * tasks > allowed:
        text = f"OMP_NUM_THREADS={each}, {tasks} tasks a node and {allowed} cores: threads wait in turns"
        yield warning(
            "machine.threads",
            text,
            f"set OMP_NUM_THREADS={max(1, allowed // tasks)}, or unset it: ranks then share the cores",
        )


def tasks_on_node(environ: Mapping[str, str]) -> int:
    """The tasks of a SLURM job on one node: `SLURM_TASKS_PER_NODE=2(x3),1` → 2; 1 outside a job."""
    told = environ.get("SLURM_NTASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    found = re.match(r"\d+", told)
    return max(1, int(found[0])) if found else 1


def others(busy: float, allowed: int) -> Iterator[Finding]:
    """Work of other processes on this machine."""
    if busy < max(0.5, BUSY_SHARE * allowed):
        yield ok("machine.busy", f"other work keeps {busy:.1f} of {allowed} cores busy")
        return
    text = (
        f"other work keeps {busy:.1f} of {allowed} cores busy: that slows training, and the measurements here"
    )
    yield warning(
        "machine.busy", text, "see `top`: end that work, or ask for a node of your own (--exclusive)"
    )


def limits(limit_of: Callable[[int], tuple[int, int]]) -> Iterator[Finding]:
    """Limits of this process (ulimit); `limit_of` is resource.getrlimit."""
    files = limit_of(resource.RLIMIT_NOFILE)[1]  # a rank raises the soft limit to the hard
    processes = limit_of(resource.RLIMIT_NPROC)[0]
    core = limit_of(resource.RLIMIT_CORE)[0]
    unlimited = resource.RLIM_INFINITY
    if files != unlimited and files < OPEN_FILES:
        text = f"a process may have {files} files open (hard limit); each shard that is read stays open"
        yield warning(
            "machine.open_files",
            text,
            "raise nofile in /etc/security/limits.conf, or `ulimit -Hn 65536` "
            "as root before the launcher; under SLURM see PropagateResourceLimits",
        )
    if processes != unlimited and processes < PROCESSES:
        text = f"this user may have {processes} processes and threads, and each rank has dozens"
        yield warning("machine.processes", text, "raise nproc in /etc/security/limits.conf (`ulimit -u`)")
    if core != 0 and _cores_lie_beside_the_run():
        most = "of any size" if core == unlimited else f"of up to {size(core)}"
        text = f"a rank that crashes writes its memory, {most}, into the working directory"
        yield note("machine.core", text, "`ulimit -c 0`, unless you want to look at the crash")
    shown = [
        f"{'unlimited' if value == unlimited else value} {what}"
        for what, value in (("open files", files), ("processes", processes))
    ]
    yield ok("machine.limits", ", ".join(shown))


def _cores_lie_beside_the_run(pattern: Path = Path("/proc/sys/kernel/core_pattern")) -> bool:
    try:
        return not pattern.read_text().startswith(("|", "/"))
    except OSError:  # no Linux
        return False


def shared_memory(folder: Path) -> Iterator[Finding]:
    """Room in /dev/shm, through which ranks of one machine send (NCCL, gloo, workers of loaders)."""
    try:
        at = os.statvfs(folder)
    except OSError:
        if sys.platform == "linux":
            text = f"{folder} is not there"
            yield warning("machine.shared_memory", text, f"mount -t tmpfs tmpfs {folder}; docker: --ipc=host")
        return
    total, free = at.f_frsize * at.f_blocks, at.f_frsize * at.f_bavail
    text = f"{folder} has {size(free)} free of {size(total)}"
    if free >= SHARED_MEMORY_BYTES:
        yield ok("machine.shared_memory", text)
    elif total < SHARED_MEMORY_BYTES:
        remedy = (
            "make it larger: docker run --shm-size=8g or --ipc=host; Kubernetes: an emptyDir of medium Memory"
        )
        yield warning(
            "machine.shared_memory", f"{text}: NCCL fails at its first collective without room", remedy
        )
    else:
        remedy = f"see `ls -la {folder}`: ended programs leave files there, which may be removed"
        yield warning(
            "machine.shared_memory", f"{text}: NCCL fails at its first collective without room", remedy
        )


def memory(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = cores.CGROUPS) -> Iterator[Finding]:
    """Memory that is there, and what of it a container may have."""
    try:
        found = {
            key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.M)
        }
    except OSError:  # no Linux
        return
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    yield ok("machine.memory", f"{size(free)} of {size(total)} memory free", measured={"memory_bytes": total})
    swapped = found.get("SwapTotal", 0) - found.get("SwapFree", 0)
    if free < total / 10:
        text = f"only {size(free)} of {size(total)} memory is free" + f", {size(swapped)} is swapped" * bool(
            swapped
        )
        yield warning(
            "machine.memory_free", text, "see `top`: end what holds it, or the kernel may kill a rank"
        )
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((cgroups / name).read_text())
        except (OSError, ValueError):  # another version of cgroups; "max"
            continue
        if limit < total:
            text = (
                f"this container may use {size(limit)} of {size(total)} memory: a rank above that is killed"
            )
            yield note(
                "machine.memory_limit", text, "keep model and optimiser below that, or raise the limit"
            )


def settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables, left over from debugging perhaps, that change how torch or NCCL works."""
    for name, (value, what) in SETTINGS.items():
        given = environ.get(name)
        if given is not None and (value is None or given.upper() == value):
            yield warning(
                "machine.settings", f"{name}={given}: {what}", f"`unset {name}`, unless you mean it"
            )
