"""Which mounted file system a folder lies on."""

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, of which type, with which options."""

    point: Path
    kind: str
    options: tuple[str, ...]


def mount_of(folder: Path) -> Mount | None:
    """Return the mount that `folder`, which need not exist, lies on; None where the system does not tell."""
    resolved = folder.resolve()  # first: looking there may mount it (autofs)
    try:
        mounted = psutil.disk_partitions(all=True)
    except (OSError, RuntimeError):
        return None
    above = [entry for entry in mounted if resolved.is_relative_to(entry.mountpoint)]
    if not above:
        return None
    # Of several mounts at one place the last is on top.
    entry = max(reversed(above), key=lambda entry: len(Path(entry.mountpoint).parts))
    return Mount(Path(entry.mountpoint), entry.fstype, tuple(entry.opts.split(",")))
