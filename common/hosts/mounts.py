"""Which mounted file system a folder lies on, and whether its locks hold between hosts (proc(5), mountinfo).

Not psutil: it reads /etc/mtab where that is a file, and in a container that file may be the image's.
"""

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

# FUSE file systems whose flock is the server's; that of others is the kernel's own, and their mount
# options do not say which.
_FUSE_WITH_LOCKS = ("ceph-fuse", "glusterfs", "juicefs", "mfs", "moosefs")
# Of the other file systems that several hosts may share, those whose flock is the kernel's own as a rule.
_LOCAL_LOCKS = ("9p", "beegfs", "orangefs", "pvfs2", "vboxsf", "virtiofs", "wekafs")


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, of which type, with which options."""

    point: Path
    kind: str
    options: tuple[str, ...]

    @property
    def locks_reach_other_hosts(self) -> bool:
        """Whether flock(2) here keeps out processes of other hosts too; True for a disk of this host alone.

        NFS passes flock to the server, but not with `nolock`, `local_lock=flock` or `local_lock=all`
        (nfs(5)); Lustre with `flock` only (mount.lustre(8)); CIFS unless `nobrl` (mount.cifs(8)).
        """
        if self.kind in ("nfs", "nfs4"):
            return {"nolock", "local_lock=flock", "local_lock=all"}.isdisjoint(self.options)
        if self.kind == "lustre":
            return "flock" in self.options
        if self.kind in ("cifs", "smb3"):
            return "nobrl" not in self.options
        if self.kind == "fuse" or self.kind.startswith("fuse."):
            return self.kind.removeprefix("fuse.") in _FUSE_WITH_LOCKS
        return self.kind not in _LOCAL_LOCKS

    @property
    def opens_ask_the_server(self) -> bool:
        """Whether a file that is opened shows what other hosts wrote before; else a cache may answer."""
        if self.kind in ("nfs", "nfs4"):
            return "nocto" not in self.options
        return not self.kind.startswith("fuse")


def mount_of(folder: Path) -> Mount | None:
    """Return the mount that `folder`, which need not exist, lies on; None where the system does not tell."""
    resolved = folder.resolve()  # first: looking there may mount it (autofs)
    try:
        mounted = [_mount(line) for line in MOUNTS.read_bytes().splitlines()]
    except OSError:
        return None
    above = [mount for mount in mounted if resolved.is_relative_to(mount.point)]
    # Of several mounts at one place the last is on top.
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)


def _mount(line: bytes) -> Mount:
    """Read a line: number, parent, device, root, place, options, tags, a dash, type, source, options."""
    here, _, system = line.partition(b" - ")
    place, options = here.split(b" ")[4:6]
    kind, _, more = (_text(field) for field in system.split(b" ")[:3])
    both = dict.fromkeys([*_text(options).split(","), *more.split(",")])
    return Mount(Path(_text(place)), kind, tuple(both))


def _text(field: bytes) -> str:
    """Return a field whose blanks, line ends and backslashes were written as octal numbers."""
    plain = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)
    return plain.decode(errors="surrogateescape")
