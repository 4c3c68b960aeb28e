"""What the doctor does with several nodes, tried without any: rules, links, one folder, the channel."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from launch import cli
from launch.doctor.finding import Finding, Level, error, ok, warning
from launch.doctor.nodes import commands, links, listener, shared, verdict
from launch.doctor.nodes.channel import Channel
from launch.doctor.nodes.listener import Peer
from launch.doctor.nodes.shared import Place

MATMUL = verdict.RULES["matmul_flops_per_second"]
FSYNC = verdict.RULES["fsync_seconds"]
HOSTS = ("n1", "n2", "n3", "n4", "n5")


def found(findings: Iterator[Finding]) -> dict[str, Level]:
    return {finding.check: finding.level for finding in findings if finding.level > Level.OK}


# Which node is slow.


def named(figures: Sequence[float], rule: verdict.Rule = MATMUL) -> list[str]:
    return list(verdict.slow(dict(zip(HOSTS, figures)), rule))


def test_a_slow_node_is_named_and_noise_is_not() -> None:
    assert named([100, 101, 99, 100, 60]) == ["n5"]
    assert named([100, 60, 99, 61, 102]) == ["n2", "n4"]  # two of five do not hide each other
    assert named([100, 101, 99, 100, 85]) == []  # within the factor
    assert named([100, 60, 140, 80, 65]) == []  # all differ: the deviations say so
    assert named([5, 5, 5, 5, 0]) == ["n5"]
    assert named([100]) == named([]) == []


def test_with_two_nodes_the_difference_has_to_be_larger() -> None:
    assert named([100, 70]) == []
    assert named([100, 60]) == ["n2"]
    assert verdict.slow({"a": 30.0, "b": 90.0}, MATMUL) == {"a": 3.0}


def test_a_slow_time_is_named_only_where_it_matters() -> None:
    assert named([0.001, 0.001, 0.001, 0.001, 0.015], FSYNC) == []  # 15 times, and still quick
    assert named([0.001, 0.001, 0.001, 0.001, 0.2], FSYNC) == ["n5"]


def test_what_differs_is_named_by_the_minority() -> None:
    def versions(*torch: str) -> list[Finding]:
        return [ok("software.versions", "x", host=host, same={"torch": v}) for host, v in zip(HOSTS, torch)]

    assert list(verdict.compare(versions("2.13", "2.13", "2.13"), HOSTS)) == []
    (finding,) = verdict.compare(versions("2.13", "2.12", "2.13"), HOSTS)
    assert (finding.host, finding.level) == ("n2", Level.ERROR)
    assert finding.found == "torch is 2.12, on most other nodes 2.13"


def test_the_nodes_to_leave_out_are_those_that_stand_out() -> None:
    hosts = HOSTS[:4]
    everywhere = [error("folder.writable", "read-only", "mend", host=host) for host in hosts]
    assert verdict.to_leave_out(everywhere, hosts) == []
    one = [error("folder.shared", "not the same", "mount", host="n3")]
    assert verdict.to_leave_out([*everywhere, *one], hosts) == ["n3"]
    assert verdict.to_leave_out([warning("names.own", "127.0.1.1", "mend", host="n2")], hosts) == []
    slow = [warning("nodes.fsync_seconds", "9 times worse", "look", host="n4")]
    assert verdict.to_leave_out([*one, *slow], hosts) == ["n3", "n4"]
    all_slow = [warning("nodes.fsync_seconds", "9 times worse", "look", host=host) for host in hosts]
    assert verdict.to_leave_out([*one, *all_slow], hosts) == ["n3"]
    assert verdict.to_leave_out(all_slow, hosts) == []
    # Nobody reaches n2: n2 has one error for each of the others, each of them one for n2.
    cut = [error("network.connect.n2", "no", "open", host=host) for host in hosts if host != "n2"]
    cut += [error(f"network.connect.{host}", "no", "open", host="n2") for host in hosts if host != "n2"]
    assert verdict.to_leave_out(cut, hosts) == ["n2"]
    both = [
        error("network.connect.n2", "no", "open", host="n1"),
        error("network.connect.n1", "no", "open", host="n2"),
    ]
    assert verdict.to_leave_out(both, hosts[:2]) == []


# Between nodes.


@pytest.fixture
def peer() -> Iterator[Peer]:
    port, process = listener.start()
    yield Peer("localhost", ("127.0.0.1",), port)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_peer_that_answers_is_well_but_for_its_name(peer: Peer) -> None:
    findings = list(links.connect([peer]))
    assert found(iter(findings)) == {"names.localhost": Level.WARNING}  # it means this node itself
    (clock,) = [finding for finding in findings if finding.check == "network.clock"]
    assert abs(clock.measured["clock_offset_seconds"]) < 0.5
    (sent,) = links.send([peer])
    assert sent.measured["send_bytes_per_second"] > 0


def test_a_peer_that_cannot_be_reached_is_an_error(peer: Peer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    levels = found(links.connect([Peer("no-such-host.invalid", ("127.0.0.1",), port)]))
    assert levels["network.connect.no-such-host.invalid"] == Level.ERROR
    assert levels["names.no-such-host.invalid"] == Level.WARNING
    assert list(links.send([Peer("localhost", (), port)])) == []


def test_a_second_address_is_tried(peer: Peer) -> None:
    connection, address = listener.reach(Peer("x", (), peer.port), ["127.0.0.1"])
    connection.close()
    assert address == "127.0.0.1"
    with pytest.raises(OSError, match="no address"):
        listener.reach(peer, [])


def test_a_name_that_means_another_address_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "addresses", lambda name: ["10.0.0.9"])
    (finding,) = links.resolve(Peer("n2", ("10.0.0.2",), 1))
    assert "n2 means 10.0.0.9 here, and it has 10.0.0.2" in finding.found
    assert list(links.resolve(Peer("n2", ("10.0.0.2", "10.0.0.9"), 1))) == []


def test_clocks_that_differ_are_found() -> None:
    assert links.clock("n1", 0.3, 0.001).level == Level.OK
    assert links.clock("n1", 1.5, 2.0).level == Level.OK  # the round trip is longer than that
    assert links.clock("n1", -90.0, 0.001).level == Level.WARNING
    assert links.clock("n1", -90.0, 0.001).found == "this clock is 90 s ahead of that of n1"


# One folder, as two nodes see it.


def place(folder: Path, host: str, offset: float = 0.0) -> Place:
    return Place(folder, "x", "n1", ("n1", "n2"), host, offset)


def test_a_folder_that_both_see_is_well_and_removed(tmp_path: Path) -> None:
    one, two = place(tmp_path, "n1"), place(tmp_path, "n2")
    for step in (shared.make, shared.see, shared.append, shared.append, shared.write, shared.watch):
        assert found(step(one)) == found(step(two)) == {}
    holder = shared.hold_lock(one)
    assert found(shared.try_lock(two)) == {}
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert found(shared.try_lock(two)) == {"folder.shared_lock": Level.WARNING}  # nobody holds the lock
    assert list(shared.clean(one))
    assert list(tmp_path.iterdir()) == []


def test_another_folder_of_the_same_name_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SEEN_WITHIN_SECONDS", 0.05)
    (tmp_path / "n2").mkdir()
    assert found(shared.make(place(tmp_path, "n1"))) == {}
    (finding,) = shared.see(place(tmp_path / "n2", "n2"))
    assert (finding.check, finding.level) == ("folder.shared", Level.ERROR)


def test_a_file_that_is_seen_late_or_never_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = place(tmp_path, "n1"), place(tmp_path, "n2")
    list(shared.make(one))
    monkeypatch.setattr(shared, "SEEN_WITHIN_SECONDS", 0.05)
    (never,) = shared.watch(two)
    assert never.level == Level.WARNING
    assert "a rename on n1 was not seen here within 0.1 s" in never.found
    list(shared.write(one))
    began = time.time()
    monkeypatch.setattr(shared.time, "time", lambda: began)
    monkeypatch.setattr(
        shared, "_has_time", lambda file: monkeypatch.setattr(shared.time, "time", lambda: began + 9) or True
    )
    (late,) = shared.watch(two)
    assert late.level == Level.WARNING
    assert "after 9 s" in late.found


def test_lines_that_are_lost_between_nodes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "SEEN_WITHIN_SECONDS", 0.05)
    one = place(tmp_path, "n1")
    list(shared.make(one))
    list(shared.append(one))
    (finding,) = shared.count(one)
    assert finding.level == Level.WARNING
    assert "of 600 lines that all nodes appended, 300 are lost and 0 torn" in finding.found
    list(shared.append(place(tmp_path, "n2")))
    assert found(shared.count(one)) == {}


# The processes on the nodes.


def script(text: str) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-S", "-c", text], dict(os.environ)


def test_the_channel_passes_messages_and_says_why_a_node_has_gone() -> None:
    echo = (
        'import sys\nfor line in sys.stdin: print("Welcome!"); print(line.replace("do", "kind"), flush=True)'
    )
    gone = 'import sys; sys.exit("srun: error: n2: no route")'
    with Channel({"n1": script(echo), "n2": script(gone)}) as channel:
        channel.tell("n1", {"do": "x"})
        assert next(channel.messages(time.monotonic() + 20)) == ("n1", {"kind": "x"})
        assert list(channel.messages(time.monotonic() + 0.5)) == []
        assert channel.alive == ["n1"]
        assert channel.why_ended("n2") == "srun: error: n2: no route"
        channel.tell("n2", {"do": "x"})  # nobody is there


def test_the_commands_of_nodes() -> None:
    environ = {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "8",
        "SLURM_CONF": "/c",
        "PATH": "/bin",
        "PYTHONPATH": "/a b",
    }
    argv, kept = commands.by_srun("n1", environ)
    assert argv[0] == "srun"
    assert {"--jobid=7", "--nodelist=n1", "--overlap"} <= set(argv)
    assert kept == {"SLURM_CONF": "/c", "PATH": "/bin", "PYTHONPATH": "/a b"}
    argv, _ = commands.by_ssh("n1", environ)
    assert argv[-2] == "n1"
    assert "'PYTHONPATH=/a b'" in argv[-1]
    of_the_job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_CONF": "/c"}
    assert commands.job_variables(environ) == of_the_job
    assert commands.job_variables(environ | {"MASTER_ADDR": "n1"}) == of_the_job | {"MASTER_ADDR": "n1"}


def test_the_nodes_of_a_job_are_known_without_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of salloc's shell, whose step is SLURM's own and has a task for each node."""
    monkeypatch.setenv("PATH", "")
    shell = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2],gpu07"}
    assert commands.allocated(job | shell) == ["n1", "n2", "gpu07"]


def test_the_command_line_is_refused_where_it_is_wrong(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    for arguments, word in (
        (["--nodes"], "not in an allocation"),
        (["--nodes", "--hosts", "a"], "one of them"),
        (["--hosts", "a,,b"], "''"),
        (["--hosts=-oProxyCommand=x"], "-oProxyCommand=x"),
        (["--exclude-file", "x"], "--nodes or --hosts"),
    ):
        assert cli.main(["doctor", *arguments]) == 2
        assert word in capfd.readouterr().err
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert cli.main(["doctor", "--nodes"]) == 2
    assert "one of 2 tasks of srun" in capfd.readouterr().err
