"""`germinal doctor` over real nodes with planted faults: SLURM's, hosts with own networks, real mounts."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, children, host_environment, hosts, why_not
from launch.doctor.apart import findings_of
from launch.doctor.check import Check, Circumstances
from launch.doctor.checks import folder
from launch.doctor.finding import Finding, Level
from slurm import Slurm

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
GERMINAL = str(Path(sys.executable).with_name("germinal"))


class Report:
    """What `germinal doctor --json` printed."""

    def __init__(self, done: "subprocess.CompletedProcess[str]") -> None:
        self.code = done.returncode
        assert done.stdout, done.stderr
        self.document: dict[str, Any] = json.loads(done.stdout)
        self.findings = [Finding.read(finding) for finding in self.document["findings"]]

    def levels(self, host: str) -> dict[str, Level]:
        """Check → the worst level that it found on a node."""
        found: dict[str, Level] = {}
        for finding in self.findings:
            if finding.host == host:
                found[finding.check] = max(finding.level, found.get(finding.check, Level.OK))
        return found

    def errors(self) -> set[tuple[str, str]]:
        return {(f.host, f.check) for f in self.findings if f.level == Level.ERROR}


@pytest.fixture
def examine(slurm: Slurm) -> Callable[..., Report]:
    """Run the doctor inside an allocation of two nodes of a partition."""

    def run(folder: Path, *arguments: object, partition: str = "tiny") -> Report:
        allocation = ("salloc", "-N2", "--no-kill", "--quiet", "-p", partition)
        command = (GERMINAL, "doctor", "--nodes", "--json", "--folder", folder, *arguments)
        return Report(
            slurm.run(*allocation, *command, env={"PYTHONPATH": str(ROOT)}, check=False, timeout=500)
        )

    return run


def on_node(slurm: Slurm, node: str, script: str) -> None:
    """Run a script in a node's namespaces."""
    enter = ["nsenter", f"--target={slurm._first_process(node)}", "--mount", "--pid", "--uts", "--"]
    subprocess.run([*enter, "sh", "-euc", script], check=True, capture_output=True, text=True)


def test_two_sound_nodes_have_no_error_and_every_step_is_made(
    examine: Callable[..., Report], tmp_path: Path
) -> None:
    report = examine(tmp_path, "--exclude-file", tmp_path / "leave-out")
    assert report.errors() == set()
    assert (report.code, report.document["fit"], report.document["hosts"]) == (0, True, ["n1", "n2"])
    both = {"network.connect", "network.send", "folder.fsync", "folder.write", "speed.matmul"}
    assert both <= set(report.levels("n1")) & set(report.levels("n2"))
    assert {"speed.nodes", "folder.shared_append"} <= set(report.levels("n1"))
    assert report.levels("n2")["folder.shared"] == report.levels("n2")["folder.shared_lock"] == Level.OK
    assert [path.name for path in tmp_path.iterdir()] == ["leave-out"]


def test_a_folder_that_is_not_shared_and_a_name_at_127_0_1_1(
    examine: Callable[..., Report], slurm: Slurm, tmp_path: Path
) -> None:
    """n2 has a full disk of its own where n1 has the runs, and Debian's line in its /etc/hosts."""
    own = tmp_path / "runs"
    own.mkdir()
    names = slurm.folder / "hosts.n2"
    before = names.read_text()
    names.write_text("127.0.0.1 localhost n1\n127.0.1.1 n2\n")
    on_node(slurm, "n2", f"mount -t tmpfs -o size=1m none {own}")
    try:
        report = examine(own, "--exclude-file", tmp_path / "leave-out")
    finally:
        on_node(slurm, "n2", f"umount {own}")
        names.write_text(before)
    assert report.code == 1
    assert report.errors() == {("n2", "folder.shared"), ("n2", "folder.room")}
    assert report.levels("n2")["folder.kind"] == report.levels("n2")["names.own"] == Level.WARNING
    assert [f.found for f in report.findings if f.check == "names.own" and "127.0.1.1" in f.found]
    assert report.document["exclude"] == ["n2"]
    assert (tmp_path / "leave-out").read_text() == "n2\n"


def test_names_that_do_not_resolve_are_told_and_hold_nothing_up(
    examine: Callable[..., Report], tmp_path: Path
) -> None:
    report = examine(tmp_path, partition="nameless")
    assert report.errors() == set()
    assert report.levels("u1")["names.u2"] == report.levels("u2")["names.u1"] == Level.WARNING
    assert report.levels("u2")["names.own"] == Level.WARNING
    assert report.levels("u1")["speed.nodes"] == Level.OK


def test_a_node_that_is_lost_is_named(slurm: Slurm, tmp_path: Path) -> None:
    """n2 dies before the doctor begins; SLURM still believes that it is there."""
    job = slurm.sbatch(
        "-N2",
        "--no-kill",
        script=f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done\n"
        f"cd {tmp_path}; {shlex.quote(GERMINAL)} doctor --nodes --json --folder . > report 2> said\n"
        f"echo $? > {tmp_path}/code",
        env={"PYTHONPATH": str(ROOT)},
    )
    slurm.wait_for_job(job, "RUNNING")
    slurm.lose("n2")
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 300
    while not (tmp_path / "code").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (tmp_path / "code").read_text() == "1\n", (tmp_path / "said").read_text()
    document = json.loads((tmp_path / "report").read_text())
    assert document["exclude"] == ["n2"]
    assert [f["check"] for f in document["findings"] if f["host"] == "n2"] == ["nodes.answers"]
    assert [f for f in document["findings"] if f["host"] == "n1" and f["check"] == "speed.matmul"]


def test_a_node_whose_disk_is_slow_is_named(
    examine: Callable[..., Report], slurm: Slurm, tmp_path: Path
) -> None:
    """Every fsync of n2 takes 0.3 s longer."""
    slow = [
        "strace",
        "-qq",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync",
        "-e",
        "inject=fsync:delay_exit=300000",
    ]
    (daemon,) = [
        child
        for child in children(slurm._first_process("n2"))
        if Path(f"/proc/{child}/comm").read_text() == "slurmd\n"
    ]
    with subprocess.Popen([*slow, "-p", str(daemon)], stderr=subprocess.PIPE) as strace:
        try:
            time.sleep(1)
            assert strace.poll() is None, strace.stderr and strace.stderr.read()
            report = examine(tmp_path)
        finally:
            strace.terminate()
    assert report.levels("n2")["folder.fsync"] == Level.WARNING
    assert report.levels("n2")["nodes.fsync_seconds"] == Level.WARNING
    assert "nodes.fsync_seconds" not in report.levels("n1")


def test_a_node_whose_core_others_keep_busy_is_named(
    examine: Callable[..., Report], slurm: Slurm, tmp_path: Path
) -> None:
    """Each node has one core of this machine's; on that of n2 ten processes burn time."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    for node, core in (("n1", first), ("n2", second)):
        on_node(slurm, node, f"for p in $(pidof slurmd); do taskset -a -p -c {core} $p; done")
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(["taskset", "-c", str(second), *burn]) for _ in range(10)]
    try:
        report = examine(tmp_path)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
        for node in ("n1", "n2"):
            on_node(slurm, node, f"for p in $(pidof slurmd); do taskset -a -p -c {first},{second} $p; done")
    assert report.levels("n2")["speed.matmul"] == report.levels("n2")["machine.busy"] == Level.WARNING
    assert report.levels("n2")["nodes.matmul_flops_per_second"] == Level.WARNING
    assert "nodes.matmul_flops_per_second" not in report.levels("n1")


# Hosts with networks of their own; ssh is a script that enters them.


def over_ssh(folder: Path, machines: list[Host]) -> Report:
    programs = folder / "bin"
    programs.mkdir()
    cases = "".join(f'{host.name}) exec {shlex.join(host.enter())} -- sh -c "$3" ;;\n' for host in machines)
    script = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\ncase "$2" in\n' + cases + "esac\nexit 255\n"
    (programs / "ssh").write_text(script)
    (programs / "ssh").chmod(0o755)
    env = host_environment()
    env |= {"PATH": f"{programs}:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    names = ",".join(host.name for host in machines)
    command = [GERMINAL, "doctor", "--hosts", names, "--json", "--folder", str(folder)]
    return Report(subprocess.run(command, env=env, capture_output=True, text=True, timeout=500))


needs_hosts = pytest.mark.skipif(bool(why_not()), reason=why_not())


@needs_hosts
def test_hosts_of_debian_are_reached_at_their_addresses(tmp_path: Path) -> None:
    with hosts(tmp_path, 2, debian=True) as machines:
        report = over_ssh(tmp_path, machines)
    assert report.errors() == set()
    assert report.code == 0
    for host in ("h1", "h2"):
        (own,) = [f for f in report.findings if f.check == "names.own" and f.host == host]
        assert own.level == Level.WARNING and "127.0.1.1" in own.found
    assert report.levels("h1")["speed.nodes"] == Level.OK


@needs_hosts
def test_a_host_that_the_others_cannot_reach_is_named(tmp_path: Path) -> None:
    with hosts(tmp_path, 3) as machines:
        machines[2].silence()
        report = over_ssh(tmp_path, machines)
    assert report.code == 1
    assert {("h3", "network.connect.h1"), ("h3", "network.connect.h2")} <= report.errors()
    assert {("h1", "network.connect.h3"), ("h2", "network.connect.h3")} <= report.errors()
    assert report.document["exclude"] == ["h3"], report.errors()


# Real mounts.


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system; it is unmounted at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    made: list[Path] = []

    def mount(*arguments: object) -> Path:
        at = tmp_path / f"mount-{len(made)}"
        at.mkdir()
        done = subprocess.run(["mount", *map(str, arguments), at], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this system mounts no such thing: {done.stderr.strip()}")
        made.append(at)
        return at

    yield mount
    for at in made:
        subprocess.run(["umount", "--lazy", at], check=True)


def levels(place: Path) -> dict[str, Level]:
    found = {f.check: f.level for f in folder.check(Circumstances((), {}), place)}
    return {check: level for check, level in found.items() if level > Level.OK}


def test_a_full_tmpfs_is_found(mounted: Callable[..., Path]) -> None:
    at = mounted("-t", "tmpfs", "-o", "size=1m", "none")
    assert levels(at) == {"folder.kind": Level.WARNING, "folder.room": Level.ERROR}
    (at / "filler").write_bytes(bytes(1 << 20))
    assert levels(at)["folder.writable"] == Level.ERROR
    assert [path.name for path in at.iterdir()] == ["filler"]


def test_a_read_only_folder_is_found(mounted: Callable[..., Path], tmp_path: Path) -> None:
    at = mounted("--bind", tmp_path)
    subprocess.run(["mount", "-o", "remount,ro,bind", at], check=True)
    assert levels(at)["folder.writable"] == Level.ERROR
    assert levels(at / "runs" / "mine")["folder.writable"] == Level.ERROR


def test_a_file_system_that_hangs_does_not_hang_the_doctor(
    mounted: Callable[..., Path], tmp_path: Path
) -> None:
    """A frozen file system holds a writer in the kernel, beyond any signal, as a dead NFS server does."""
    image = tmp_path / "image"
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    at = mounted("-o", "loop", image)
    subprocess.run(["fsfreeze", "--freeze", at], check=True)
    try:
        check = Check("folder", lambda where: folder.check(where, at), 2, Level.ERROR, "see mount")
        began = time.monotonic()
        found = list(findings_of(check, Circumstances((), {})))
        assert time.monotonic() - began < 20
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", at], check=True)
    assert [(f.check, f.level) for f in found if f.level > Level.NOTE] == [("folder.time", Level.ERROR)]
