"""How many CPU threads a rank is given: from the cores that this process may use and that others leave free.

What limits a process is the cores it may run on (affinity, which containers and SLURM set) and the share of
their time that its cgroup has (a quota). What others leave is measured. More threads than free cores wait for
one another at every operation: 15 steps took 15.5 s with two threads on two busy cores, and 4.2 s with one.

`germinal train` chooses the number before it starts its ranks (`choose`). Ranks that another launcher started
without a number share their cores themselves (`share`). Imports no torch.
"""

import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.folder.run_folder import EVENTS
from trainer.record.events import read_events

CGROUPS = Path("/sys/fs/cgroup")
AS_BEGUN = "as this run began; train.threads changes it"
WINDOW_SECONDS = 0.2  # the kernel counts in hundredths of a second: a shorter window is too coarse
MORE_WINDOWS = 5  # looked at before cores are called busy, which they then are for the whole run


@dataclass(frozen=True)
class Threads:
    """The CPU threads of a rank.

    count: their number; 0: as the environment sets it.
    why: where the number comes from, in words.
    """

    count: int
    why: str

    def __str__(self) -> str:
        many = f"{self.count} thread{'s' * (self.count > 1)} each" if self.count else "threads"
        return f"{many} ({self.why})"


@dataclass(frozen=True)
class Cores:
    """How many cores this process may use, and `why` not more, in words."""

    count: int
    why: str


@dataclass(frozen=True)
class Allotment:
    """The cores that one rank may use: how many, and their numbers on its machine."""

    host: str
    numbers: frozenset[int]
    cores: Cores

    @classmethod
    def of_this_process(cls) -> "Allotment":
        """Return the allotment of the rank that this process is."""
        return cls(socket.gethostname(), frozenset(allowed()), usable())


class Occupancy:
    """How many of this process's cores others keep busy, measured from its making on."""

    def __init__(self) -> None:
        self._begin()

    def busy(self) -> float:
        """Return how many cores other processes kept busy: the smallest of some windows and the last minute,
        so that neither a moment's burst nor work that has just ended then takes a core from a run.

        Takes up to a second where some are busy.
        """
        found = min(self._in_window(), os.getloadavg()[0], len(allowed()))
        for _ in range(MORE_WINDOWS):
            if round(found) <= 0:
                break
            self._begin()
            found = min(found, self._in_window())
        return max(0.0, found)

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._before = _busy_seconds()
        self._own = _own_seconds()

    def _in_window(self) -> float:
        time.sleep(max(0.0, WINDOW_SECONDS - (time.monotonic() - self._began)))
        others = _busy_seconds() - self._before - (_own_seconds() - self._own)
        return others / (time.monotonic() - self._began)


def choose(
    ranks: int, *, asked: int, environ: Mapping[str, str], folder: Path | None, occupancy: Occupancy
) -> Threads:
    """Threads of each of `ranks` on this machine.

    The user's number goes first (`asked` is train.threads, 0 where it is not given), then the number that the
    run in `folder` began with on as many ranks: with another number of threads, sums come in another order,
    and a run that goes on would not be the same to the last bit. Else the free cores are shared out.
    """
    if asked:
        return Threads(asked, "train.threads")
    if "OMP_NUM_THREADS" in environ:
        return Threads(0, f"OMP_NUM_THREADS={environ['OMP_NUM_THREADS']}")
    if folder is not None and (before := begun_with(folder, ranks)):
        return Threads(before, AS_BEGUN)
    cores, busy = _of_the_job(usable(), environ), occupancy.busy()
    free = min(cores.count, len(allowed()) - round(busy))
    others = f", and other work keeps {busy:.1f} busy" if round(busy) else ""
    return Threads(max(1, free // ranks), f"{cores.why}{others}")


def sharers(everyones: Sequence[Allotment]) -> list[int]:
    """Return for each rank how many ranks, with it, may use a core of its own.

    everyones: the allotment of each rank, in order of rank. A launcher may have given each its own cores.
    """
    alike = Counter((one.host, one.numbers) for one in everyones)
    of_host: dict[str, list[tuple[frozenset[int], int]]] = {}
    for (host, numbers), count in alike.items():
        of_host.setdefault(host, []).append((numbers, count))
    found = {
        (host, numbers): sum(count for others, count in of_host[host] if not numbers.isdisjoint(others))
        for host, numbers in alike
    }
    return [found[one.host, one.numbers] for one in everyones]


def share(mine: Allotment, sharers: int, *, begun: int = 0, at_most: int = 0) -> Threads:
    """Threads of this rank, as `choose`, where no launcher set a number and all ranks start at the same time.
    What other processes keep busy is not measured: the other ranks, which start at the same moment, would be
    among them.

    sharers: how many ranks divide the cores of `mine`.
    begun: the number that the run began with on as many ranks; 0: none.
    at_most: the CPUs that SLURM gives each task, which it may not confine to them; 0: no such number.
    """
    if begun:
        return Threads(begun, AS_BEGUN)
    among = f" for {sharers} ranks" if sharers > 1 else ""
    count = max(1, mine.cores.count // sharers)
    if 0 < at_most < count:
        return Threads(at_most, f"SLURM_CPUS_PER_TASK={at_most}")
    return Threads(count, f"{mine.cores.why}{among}")


def _of_the_job(cores: Cores, environ: Mapping[str, str]) -> Cores:
    """No more cores than SLURM gives the job on this node, which it may not confine to them."""
    told = environ.get("SLURM_CPUS_ON_NODE", "")
    if told.isdecimal() and 0 < int(told) < cores.count:
        return Cores(int(told), f"SLURM_CPUS_ON_NODE={told}")
    return cores


def begun_with(folder: Path, ranks: int) -> int:
    """The threads of a run's last start on as many ranks, from its events; 0 where it has none."""
    found = 0
    with contextlib.suppress(OSError):
        for event in read_events(folder / EVENTS):
            if event["kind"] == "start" and event.get("ranks") == ranks:
                found = event.get("threads", 0)
    return found


def usable() -> Cores:
    """The cores that affinity and the cgroups' quotas leave this process."""
    cores = len(allowed())
    quota = min(quotas(), default=float(cores))
    if quota < cores:
        return Cores(max(1, int(quota)), f"a cgroup's quota of {quota:g} cores")
    return Cores(cores, f"{cores} core{'s' * (cores > 1)}")


def allowed() -> set[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quotas(root: Path = CGROUPS, of: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """The quota, in cores, of every cgroup above this process that has one: cgroup v2's cpu.max, v1's
    cpu.cfs_quota_us (kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc).

    A container's own cgroup may be mounted as the root, and its path lead nowhere: the root is asked too.
    """
    try:
        lines = of.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = (root / "cpu", root / controllers) if controllers else (root, root / "unified")
        inner = Path(path.lstrip("/"))
        for folder in {mount / part for mount in mounts for part in (inner, *inner.parents)}:
            with contextlib.suppress(OSError, ValueError):
                yield _quota_v1(folder) if controllers else _quota_v2(folder)


def _quota_v2(folder: Path) -> float:
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota) / int(period)  # ValueError: "max"


def _quota_v1(folder: Path) -> float:
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    if quota <= 0:
        raise ValueError("no quota")
    return quota / int((folder / "cpu.cfs_period_us").read_text())


def _busy_seconds() -> float:
    """Seconds that the cores we may use have spent on any work, ours included; 0 where the system does not
    count them.

    /proc/stat (proc(5)): user nice system idle iowait irq softirq steal; guests are counted in user.
    """
    names = {f"cpu{number}" for number in allowed()}
    ticks = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name in names:
                user, nice, system, _idle, _waiting, *rest = map(int, fields[:8])
                ticks += user + nice + system + sum(rest)
    return ticks / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
