"""What the kernel tells of a process (proc(5)); nothing on other systems than Linux."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessStat:
    """A process, running or not.

    state: proc(5)'s letter, such as R, S, D, T, t or Z (it has ended, and its parent has not waited for it).
    began_ticks: when it began, in ticks of SC_CLK_TCK since the machine did.
    """

    state: str
    began_ticks: int

    @property
    def has_ended(self) -> bool:
        return self.state in "ZX"


def stat(pid: int) -> ProcessStat | None:
    """Return what the kernel tells of process `pid`; None where there is no such process."""
    try:
        # The second field is the program's name in parentheses, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return ProcessStat(fields[0], int(fields[19]))


def boot_id() -> str:
    """Return what tells this start of this machine from every other. OSError on other systems."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
