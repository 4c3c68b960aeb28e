"""Hosts of a test's own on this machine: each has its own network, host name, /etc/hosts and processes.

    with hosts(tmp_path, 2) as (h1, h2):
        rank = h1.start("germinal", "rank", config, env=...)
        h2.silence()                         # no packet reaches it or comes from it, and nobody is told
        h2.lose()                            # the power goes
        h2.boot()                            # and is back: the same name and address

A host is a process that holds namespaces (network, PID, mounts, host name), joined to a bridge in a network
namespace of its own by a veth pair. Files are shared: /tmp is the cluster's shared file system. Nothing has a
name in this machine's own namespaces. All processes of a host end with its first one, and that ends with this
process. So nothing is left behind, however a test ends.

Addresses are 10.99.0.1, 10.99.0.2, …; names are h1, h2, …; all names are in every host's /etc/hosts.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from processes import Loud, all_processes, children, is_alive_in, parent, until, variable
from whole_runs import environment

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "bridge", "ss")
# The first process of a host does nothing but collect processes that lost their parents.
COLLECT = "sleep infinity & wait"


class Process(Loud):
    """A program on a host; its output is in `log`. Signals go to the program, not to nsenter, its parent."""

    def __init__(self, host: "Host", command: list[str], env: Mapping[str, str], cwd: Path) -> None:
        host.logs += 1
        self.log = host.folder / f"{host.name}.{host.logs}.log"
        with self.log.open("w") as out:
            super().__init__(
                [*host.enter(), f"--wd={cwd}", "--", *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def program(self) -> int:
        """The program's process id, as this machine sees it; 0 where it has ended."""
        return next(iter(children(self.pid)), 0)

    def send_signal(self, sig: int) -> None:
        if self.poll() is None and (program := self.program()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(program, sig)

    def end(self, seconds: float = 60.0) -> int:
        """Wait for the end of the program; its exit code, negative for a signal."""
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.said()[-6000:]}") from None


@dataclass
class Host:
    """One host.

    name: its host name.
    address: its IPv4 address.
    folder: where the output of its programs goes.
    names: the text of its /etc/hosts.
    switch: the process that holds the bridge's network namespace.
    """

    name: str
    address: str
    folder: Path
    names: str
    switch: int
    logs: int = 0
    _first: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def boot(self) -> None:
        """Start the host: namespaces, network, files of its own under /etc and /run."""
        assert self._first is None, f"{self.name} is up"
        self._first = _hold("--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        own = self.folder / f"{self.name}.etc"
        own.mkdir(exist_ok=True)
        (own / "hosts").write_text(self.names)
        (own / "resolv.conf").touch()
        # Its hardware address stays the same when it comes back, as others remember it for a while.
        card = f"address 02:00:00:00:00:{int(self.address.rpartition('.')[2]):02x} netns {self.pid}"
        _run(*f"ip link add {self.name} type veth peer name eth0 {card}".split(), at=self.switch)
        self.run(
            "sh",
            "-euc",
            f"hostname {self.name}; mount -t tmpfs none /run; mount -t sysfs none /sys; "
            f"mount --bind {own}/hosts /etc/hosts; mount --bind {own}/resolv.conf /etc/resolv.conf; "
            f"ip link set lo up; ip address add {self.address}/24 dev eth0; ip link set eth0 up",
        )
        _run("ip", "link", "set", self.name, "master", "bridge", "up", at=self.switch)
        until(lambda: "state forwarding" in self._link(), what=f"{self.name}'s link")

    @property
    def pid(self) -> int:
        """The first process of the host, as this machine sees it."""
        assert self._first is not None, f"{self.name} is down"
        return children(self._first.pid)[0]

    def enter(self) -> list[str]:
        """The beginning of a command that runs on this host."""
        return ["nsenter", f"--target={self.pid}", "--net", "--uts", "--mount", "--pid"]

    def start(
        self, *command: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        """Start a program; `env` comes on top of `host_environment`."""
        words = [str(word) for word in command]
        return Process(self, words, host_environment() | dict(env or {}), cwd or self.folder)

    def run(self, *command: object, timeout: float = 60.0) -> str:
        """Run a program to its end; return what it wrote. AssertionError where it fails."""
        words = [*self.enter(), "--", *map(str, command)]
        done = subprocess.run(words, env=host_environment(), capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> list[int]:
        """What runs on the host besides its first process and that one's sleep, as this machine sees it."""
        if self._first is None:
            return []
        first = self.pid
        space = os.readlink(f"/proc/{first}/ns/pid")
        own = {first, *children(first)[:1]}
        return sorted(pid for pid in all_processes() if pid not in own and is_alive_in(pid, space))

    def ranks(self, name: str = "RANK") -> dict[int, int]:
        """The ranks on this host: rank → process id. `name` is the launcher's name for the rank."""
        found = {}
        for pid in self.processes():
            number = variable(pid, name)
            if number and not variable(parent(pid), name):  # a rank's own children have it too
                found[int(number)] = pid
        return found

    def signal_all(self, sig: int) -> None:
        """Signal every process that a test started here, as srun does with a step's."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)

    def silence(self) -> None:
        """Drop every packet to and from the host at the bridge. The host's own link stays up."""
        _run("bridge", "link", "set", "dev", self.name, "state", "0", at=self.switch)

    def hear(self) -> None:
        """End `silence`."""
        _run("bridge", "link", "set", "dev", self.name, "state", "3", at=self.switch)

    def unplug(self) -> None:
        """Take the link down; the host sees that it has no carrier."""
        _run("ip", "link", "set", self.name, "down", at=self.switch)

    def plug(self) -> None:
        """End `unplug`."""
        _run("ip", "link", "set", self.name, "up", at=self.switch)
        until(lambda: "state forwarding" in self._link(), what=f"{self.name}'s link")

    def lose(self) -> None:
        """Take the power: all processes end, and nobody on another host is told by a closed connection."""
        self.silence()
        self.shut()

    def shut(self) -> None:
        """Kill all processes of the host at once, whose connections the kernel closes."""
        if self._first is not None:
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._first.kill()
            self._first.wait()
            self._first = None
            # The kernel removes a network namespace, and the link with it, some time after its last process.
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "link", "delete", self.name, at=self.switch)

    def _link(self) -> str:
        return _run("bridge", "-d", "link", "show", "dev", self.name, at=self.switch)


@contextlib.contextmanager
def hosts(folder: Path, count: int = 2, *, debian: bool = False) -> Iterator[list[Host]]:
    """`count` hosts. Skips the test where this machine cannot have any.

    debian: every host has `127.0.1.1 NAME` of its own name in /etc/hosts, as Debian's installer writes it.
    """
    if reason := why_not():
        pytest.skip(reason)
    switch = _hold("--net")
    addresses = {f"h{n}": f"10.99.0.{n}" for n in range(1, count + 1)}
    made = []
    try:
        _run("ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0", at=switch.pid)
        _run("ip", "link", "set", "bridge", "up", at=switch.pid)
        for name, address in addresses.items():
            lines = ["127.0.0.1 localhost", *([f"127.0.1.1 {name}"] if debian else [])]
            lines += [f"{at} {other}" for other, at in addresses.items() if not (debian and other == name)]
            made.append(Host(name, address, folder, "\n".join(lines) + "\n", switch.pid))
            made[-1].boot()
        yield made
    finally:
        for host in made:
            host.shut()
        switch.kill()
        switch.wait()


@functools.cache
def why_not() -> str:
    """The reason for which this machine can have no hosts of a test's own; empty where it can."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"hosts of a test's own need {', '.join(missing)}"
    if os.geteuid() != 0:
        return "hosts of a test's own need root"
    trial = "ip link add h0 type bridge && ip link add h1 type veth peer h2"
    made = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", trial],
        capture_output=True,
        text=True,
    )
    return f"this system makes no hosts of a test's own: {made.stderr.strip()}" if made.returncode else ""


def host_environment() -> dict[str, str]:
    """The environment of programs on a host: nothing of what ties this machine's tests to its loopback."""
    env = environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    return env


def _hold(*spaces: str) -> "subprocess.Popen[bytes]":
    """Start a process that does nothing in new namespaces; it ends with this process."""
    forked = "--fork" in spaces
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces]
    command += ["sh", "-c", COLLECT] if forked else ["sleep", "infinity"]
    holder = subprocess.Popen(command, start_new_session=True)

    def holds() -> bool:
        pid = next(iter(children(holder.pid)), 0) if forked else holder.pid
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/comm").read_text() in ("sh\n", "sleep\n")
        return False

    until(holds, what=f"namespaces of {' '.join(command)}")
    return holder


def _run(*command: str, at: int) -> str:
    """Run a program in the network namespace of a process."""
    words = ["nsenter", f"--target={at}", "--net", "--", *command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
