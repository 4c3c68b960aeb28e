"""A SLURM of a few nodes on this machine, for tests: slurmctld, a munged and a slurmd for each node.

Nothing of the machine is touched or needed besides the programs and root: the configuration, the munge key,
the sockets and the logs lie in a folder in /tmp, the ports are free ones. A node is a set of namespaces: its
own host name, its own /etc/hosts, its own process ids. So a node that is lost is one killed process: the
kernel ends its slurmd and its tasks with it. Everything ends with the process that made it, however that
process ends.

n1, n2       partition `tiny`: their names resolve on each of them
n1, n2, n3   partition `three`: with a node to spare
u1, u2       partition `nameless`: no name resolves

A job in the partition `cheap` is cancelled at once where one in `urgent`, on the same nodes, wants its CPUs.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from slurm_conf import CONFIG, HOLD_SECONDS, NODES, OPTIONS, PARTITIONS, SHARED

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "unshare")
_NODE_SPACES = ("--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--mount-proc")
START_SECONDS = 60.0


class Slurm:
    """A running SLURM. `missing` says why there can be none; `running` starts one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**_without_slurm(os.environ), "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all daemons and wait until all nodes are idle; RuntimeError, with the logs, if one is not."""
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._configure()
        munge = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("socket", "pid-file")]
        munge += [f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/munge.seed"]
        self._daemon("munged", ["munged", "--foreground", "--force", f"--key-file={key}", *munge])
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged listens")
        self._spaces("slurmctld", f"slurmctld -D -f {self.env['SLURM_CONF']}", "--pid", "--fork")
        for node in NODES:
            self._boot(node)
        for node in NODES:
            self.wait_for_node(node)

    def _configure(self) -> None:
        here = socket.gethostname().split(".")[0]
        ports = _free_ports(1 + len(NODES))
        text = [CONFIG.format(host=here, folder=self.folder, ports=ports, hold=HOLD_SECONDS)]
        gpus = []
        for node, port in zip(NODES, ports[1:]):
            text.append(
                f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs=4 Gres=gpu:2\n"
            )
            gpus.append(f"NodeName={node} Name=gpu File={self.folder}/gpu[0-1]\n")
        for number in range(2):
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
        for partition, nodes in PARTITIONS.items():
            default = "YES" if partition == "tiny" else "NO"
            options = OPTIONS.get(partition, SHARED)
            text.append(
                f"PartitionName={partition} Nodes={','.join(nodes)} Default={default} State=UP {options}\n"
            )
        for node in NODES:
            known = "" if node in PARTITIONS["nameless"] else f"127.0.0.1 {' '.join(PARTITIONS['three'])}\n"
            (self.folder / f"hosts.{node}").write_text(f"127.0.0.1 localhost {here}\n{known}")
        (self.folder / "slurm.conf").write_text("".join(text))
        (self.folder / "gres.conf").write_text("".join(gpus))

    def _boot(self, node: str) -> None:
        inside = (
            f"echo {node} > /proc/sys/kernel/hostname; mount --bind {self.folder}/hosts.{node} /etc/hosts"
        )
        daemon = f"slurmd -D -f {self.env['SLURM_CONF']} -N {node}"
        self._spaces(node, f"{inside}; {daemon}", *_NODE_SPACES)

    def _spaces(self, name: str, script: str, *spaces: str) -> None:
        """Run a daemon in namespaces, whose first process waits for it and for what it leaves behind."""
        inside = ["sh", "-c", f"set -e; {script} & wait"]
        self._daemon(name, ["unshare", "--kill-child=SIGKILL", *spaces, *inside])

    def _daemon(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is for the tests
                preexec_fn=_die_with_parent,
            )

    def stop(self) -> None:
        """End every daemon and every task of every node."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("scontrol", "shutdown", check=False, timeout=20)
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()

    def run(
        self,
        *command: object,
        check: bool = True,
        timeout: float = 120.0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as on the submit host; AssertionError where `check` and it fails."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=cwd or self.folder,  # for slurm-N.out
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sbatch(self, *arguments: object, script: str = "", **options: object) -> int:
        """Submit a job, of `script`'s lines where there are some; return its number."""
        if script:
            path = self.folder / f"job-{time.monotonic_ns()}.sh"
            path.write_text(f"#!/bin/bash\n{script}\n")
            arguments = (*arguments, path)
        said = self.run("sbatch", "--parsable", *arguments, **options).stdout  # type: ignore[arg-type]
        return int(said.split(";")[0])

    def job(self, job: object) -> dict[str, str]:
        """What `scontrol show job` says of a job, such as JobState; empty where SLURM knows it no more."""
        said = self.run("scontrol", "show", "job", "-o", job, check=False)
        return dict(word.split("=", 1) for word in said.stdout.split() if "=" in word)

    def state(self, job: object) -> str:
        return self.job(job).get("JobState", "")

    def wait_for_job(self, job: object, *states: str, seconds: float = 240.0) -> dict[str, str]:
        """Wait until a job is in one of `states`; return what `job` says then."""
        self._until(lambda: self.state(job) in states, f"job {job} is {' or '.join(states)}", seconds)
        return self.job(job)

    def node_state(self, node: str) -> str:
        # All nodes: asked for one node, sinfo 22.05 calls it mixed for minutes after its job has ended.
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout.splitlines()
        return next((state for name, state in map(str.split, lines) if name == node), "")

    def wait_for_node(self, node: str, state: str = "idle", *, seconds: float = START_SECONDS) -> None:
        self._until(lambda: self.node_state(node) == state, f"node {node} is {state}", seconds)

    def lose(self, node: str) -> None:
        """Kill a node's slurmd and all tasks on it, as a machine that loses its power."""
        self._daemons[node].kill()
        self._daemons[node].wait()

    def bring_back(self, node: str) -> None:
        """Start a lost node again, and wait until it is idle."""
        self._boot(node)
        self.wait_for_node(node)

    def tidy(self) -> None:
        """Cancel all jobs, wait until they are gone, and bring back nodes that are lost."""
        self.run("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        self.run("scancel", "--user=root", check=False)
        for node in NODES:
            if self._daemons[node].poll() is not None:
                self._boot(node)
        for node in NODES:
            self.wait_for_node(node, seconds=120.0)

    def tasks(self, node: str, **variables: object) -> list[int]:
        """The processes on a node that have these environment variables, such as SLURM_PROCID=1."""
        wanted = {f"{name}={value}".encode() for name, value in variables.items()}
        space = os.readlink(f"/proc/{self._first_process(node)}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    here = os.readlink(entry / "ns/pid") == space
                    if here and wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                        found.append(int(entry.name))
        return sorted(found)

    def _first_process(self, node: str) -> int:
        unshare = self._daemons[node].pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])

    def _until(self, reached: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                nodes = self.run("scontrol", "show", "node", "-o", check=False).stdout
                raise RuntimeError(f"not within {seconds:g} s: {what}\n{nodes}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        files = sorted({*self.folder.glob("*.log"), *self.folder.glob("*.out")})
        return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')[-1500:]}" for file in files)


def missing() -> str:
    """Why no SLURM can be started here; empty where nothing is known to stand against it."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "SLURM's daemons and the nodes' namespaces need root"
    tried = subprocess.run(["unshare", *_NODE_SPACES, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def running() -> Iterator[Slurm]:
    """Yield a SLURM whose nodes are idle; end it, and remove its folder, at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-test-", dir="/tmp"))  # short: a socket's path has 107 bytes
    folder.chmod(0o755)  # munged wants a folder that everybody may enter
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in taken:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in taken]


def _without_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without the variables of a job that these tests may run in; Debian's daemons on the PATH."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    return {**kept, "PATH": _path()}


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
