"""An sshd on each host of a test's own, with keys and settings of its own. No ~/.ssh is read or written."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from hosts import Host
from processes import until

SSHD = "/usr/sbin/sshd"
SERVER = """
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
"""
CLIENT = """
Host *
  IdentityFile {keys}/user
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  LogLevel ERROR
"""


def why_no_ssh() -> str:
    """The reason for which hosts can have no sshd; empty where they can."""
    missing = [program for program in (SSHD, "ssh", "ssh-keygen") if shutil.which(program) is None]
    return f"an sshd on a host needs {', '.join(missing)}" if missing else ""


def let_in_by_ssh(hosts: Sequence[Host], folder: Path) -> None:
    """Start an sshd on every host, and have `ssh NAME` work between them. Skips where there is none."""
    if reason := why_no_ssh():
        pytest.skip(reason)
    keys = folder / "keys"
    keys.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)], check=True)
    (keys / "sshd_config").write_text(SERVER.format(keys=keys))
    (keys / "ssh_config").write_text(CLIENT.format(keys=keys))
    for host in hosts:
        # In the host's own view of the file system; its /run is empty.
        host.run("sh", "-euc", f"mkdir -p /run/sshd; mount --bind {keys}/ssh_config /etc/ssh/ssh_config")
        host.start(SSHD, "-D", "-e", "-f", keys / "sshd_config")
    for host in hosts:
        until(
            lambda host=host: hosts[0].start("ssh", host.name, "true").end() == 0, what=f"{host.name}'s sshd"
        )
