"""An NFS server in user space, and machines with a kernel, a memory and a network of their own that mount it.

    with network(tmp_path) as net:
        net.serve()
        one = net.machine("one").start("python -S - < /tmp/…/script.py")
        net.stop_serving()                   # clients wait, as a hard mount does
        one.cut(); one.join(); one.lose()

A machine is a User-Mode Linux: a Linux kernel that runs as a process, with Linux's own NFS client. Its root
is this machine's, read and written through hostfs; /run and /dev/shm are its own; the export is mounted at
/run/nfs, with attribute caches of a minute. It ends with its script. The server is NFS-Ganesha. All of them
are in a network namespace of their own, which is removed at the end.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("linux.uml", "ganesha.nfsd", "rpcbind", "ip", "mount.nfs4", "modprobe")
SERVER = "10.98.0.1"
WITH_LOCKS = "vers=4.2"
# Its flock(2) is the machine's own. (NFS 4 has no such option: nfs(5).)
WITHOUT_LOCKS = "vers=3,nolock,proto=tcp,port=2049,mountproto=tcp,mountport=20048"
LEASE_SECONDS = 10  # in which a client that says nothing keeps its locks
GANESHA = """
NFS_CORE_PARAM {{
    Protocols = 3, 4; MNT_Port = 20048; mount_path_pseudo = true; Enable_NLM = false; Enable_RQUOTA = false;
}}
NFSv4 {{
    Grace_Period = 5; Lease_Lifetime = {lease}; Minor_Versions = 1, 2;
    RecoveryBackend = fs; RecoveryRoot = {recovery};
}}
EXPORT {{
    Export_Id = 1; Path = {export}; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;
    SecType = sys; FSAL {{ Name = VFS; }}
}}
"""
INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run
mkdir -p /dev/shm; mount -t tmpfs none /dev/shm
hostname $NODE
ip link set lo up; ip addr add $ADDRESS/24 dev eth0; ip link set eth0 up
mkdir -p /run/modules/lib/modules /run/nfs /run/home
ln -s /usr/lib/uml/modules/$(uname -r) /run/modules/lib/modules/$(uname -r)
modprobe -d /run/modules nfsv4; modprobe -d /run/modules nfsv3
mount -t nfs -o $MOUNT,hard,timeo=50,actimeo=60 {server}:/export /run/nfs || echo "no mount"
cd /run
sh $SCRIPT
echo "exit $?"
halt -f
""".replace("{server}", SERVER)


class Machine:
    """A machine of the network; one script at a time."""

    def __init__(self, network: "Network", name: str, number: int) -> None:
        self.name, self.address = name, f"10.98.0.{number + 1}"
        self._network, self._number = network, number
        self._process: subprocess.Popen[bytes] | None = None
        self.log = network.folder / f"{name}.log"
        network.run("ip", "tuntap", "add", "dev", f"tap{number}", "mode", "tap")
        network.run("ip", "link", "set", f"tap{number}", "master", "bridge", "up")

    def start(self, script: str, *, memory: str = "1G", mount: str = WITH_LOCKS) -> "Machine":
        """Boot, mount the export, run the script."""
        file = self._network.folder / f"{self.name}.sh"
        file.write_text(script)
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *self._network.enter, "linux.uml", f"mem={memory}", "root=/dev/root", "rootfstype=hostfs",
                    "rootflags=/", "rw", f"init={self._network.init}", "quiet", "con=null", "con0=fd:0,fd:1",
                    f"eth0=tuntap,tap{self._number},02:00:00:00:00:{self._number:02x}", f"NODE={self.name}",
                    f"MOUNT={mount}", f"ADDRESS={self.address}", f"SCRIPT={file}", "TERM=linux",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=self._network.folder,
            )  # fmt: skip
        return self

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def await_end(self, seconds: float) -> str:
        """Wait for the script's end; return what it printed."""
        assert self._process is not None
        self._process.wait(seconds)
        return self.said

    def await_words(self, words: str, seconds: float = 120) -> None:
        """Wait until the script has printed `words`."""
        until = time.monotonic() + seconds
        while words not in self.said:
            assert time.monotonic() < until, self.said[-2000:]
            time.sleep(0.1)

    def cut(self) -> None:
        """Cut the machine off the network: it computes on, and the server hears nothing of it."""
        self._network.run("ip", "link", "set", f"tap{self._number}", "down")

    def join(self) -> None:
        self._network.run("ip", "link", "set", f"tap{self._number}", "up")

    def lose(self) -> None:
        """Take its power away."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Network:
    """The machines, and the server that they mount. See the module."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.export = folder, folder / "export"
        self.export.mkdir()
        (folder / "recovery").mkdir()
        self.name = f"germinal-nfs-{os.getpid()}"
        self.enter = ("ip", "netns", "exec", self.name)
        self.init = folder / "init"
        self.init.write_text(INIT)
        self.init.chmod(0o755)
        self._machines: list[Machine] = []
        self._server: subprocess.Popen[bytes] | None = None
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "bridge", "type", "bridge")
        self.run("ip", "addr", "add", f"{SERVER}/24", "dev", "bridge")
        self.run("ip", "link", "set", "bridge", "up")
        # NFS 3 needs it. Its files in /run are its own, or it would get in the way of this machine's.
        hidden = ("unshare", "--mount", "sh", "-c", "mount -t tmpfs none /run && exec rpcbind -f")
        self._rpcbind = subprocess.Popen([*self.enter, *hidden])
        until, ask = time.monotonic() + 60, [*self.enter, "rpcinfo", "-p", "127.0.0.1"]
        while subprocess.run(ask, capture_output=True, check=False).returncode:
            assert time.monotonic() < until and self._rpcbind.poll() is None
            time.sleep(0.1)

    def run(self, *command: str) -> None:
        subprocess.run([*self.enter, *command], check=True)

    def machine(self, name: str) -> Machine:
        self._machines.append(Machine(self, name, len(self._machines) + 1))
        return self._machines[-1]

    def serve(self) -> None:
        """Start the server, or start it again: clients get their locks back."""
        file, log = self.folder / "ganesha.conf", self.folder / "ganesha.log"
        file.write_text(
            GANESHA.format(lease=LEASE_SECONDS, export=self.export, recovery=self.folder / "recovery")
        )
        before = log.read_text().count("NFS SERVER INITIALIZED") if log.exists() else 0
        self._server = subprocess.Popen(
            [*self.enter, "ganesha.nfsd", "-F", "-f", str(file), "-L", str(log), "-p", f"{self.folder}/pid"]
        )
        until = time.monotonic() + 60
        while not log.exists() or log.read_text().count("NFS SERVER INITIALIZED") <= before:
            assert time.monotonic() < until and self._server.poll() is None, log
            time.sleep(0.1)

    def stop_serving(self) -> None:
        """End the server at once, as a crash does."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def close(self) -> None:
        for machine in self._machines:
            machine.lose()
        self.stop_serving()
        self._rpcbind.kill()
        self._rpcbind.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A server's network; skips the test where this machine cannot have one."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.getuid() != 0 or not Path("/dev/net/tun").exists():
        pytest.skip(f"needs root, /dev/net/tun and {', '.join(missing) or 'no more'} (tests/cluster/install)")
    found = Network(folder)
    try:
        yield found
    finally:
        found.close()
