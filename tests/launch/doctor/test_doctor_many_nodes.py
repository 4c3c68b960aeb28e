"""What the doctor does with very many nodes, and with one that does not read: all of it bounded."""

import os
import subprocess
import sys
import time

import pytest

from launch.doctor.nodes import channel as channels
from launch.doctor.nodes.channel import Channel
from launch.doctor.nodes.examination import peers_of


def test_a_node_that_takes_no_message_is_ended_and_the_doctor_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "TELL_SECONDS", 0.5)
    with Channel({"n1": (["sleep", "60"], dict(os.environ))}) as channel:
        channel.tell("n1", {"do": "x" * 10_000_000})
        assert list(channel.messages(time.monotonic() + 20)) == []
        assert channel.alive == [] and "did not take a message" in channel.why_ended("n1")


def test_more_nodes_than_the_soft_limit_of_open_files() -> None:
    """In a process of its own, whose limits are lowered."""
    code = """
import os, resource, sys, time
from launch.doctor.nodes.channel import Channel
before = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 200))
command = (["cat"], dict(os.environ))
with Channel({f"n{number}": command for number in range(30)}) as channel:
    channel.tell("n29", {"kind": "x"})
    print(next(channel.messages(time.monotonic() + 20)))
for nodes in ({f"n{n}": command for n in range(99)}, {"n1": command, "n2": (["no-such"], {}), "n3": command},
              {"n1": command, "n2": (["cat", "x" * 5_000_000], {})}):
    try:
        Channel(nodes)
    except RuntimeError as error:
        print(error)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left", len(os.listdir("/proc/self/fd")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "('n29', {'kind': 'x'})",
        "99 nodes need 361 open files, and the hard limit (ulimit -Hn) is 200: have it raised, or examine at "
        "most 45 nodes at a time",
        "no-such is not installed here, or not on the PATH",
        "cat cannot be started after 1 of 2 nodes: Argument list too long",
        "no child is left 0",
    ], done.stderr


def test_the_peers_of_a_node_are_bounded_and_near_and_far() -> None:
    for count in (2, 3, 9):
        order = [f"n{number}" for number in range(count)]
        assert all(set(peers_of(host, order)) == set(order) - {host} for host in order)
    order = [f"n{number}" for number in range(1000)]
    assert max(len(peers_of(host, order)) for host in order) == 15
    assert peers_of("n990", order)[:3] == ["n0", "n991", "n992"] and peers_of("n0", order)[0] == "n1"
    assert {"n998", "n6", "n502"} <= set(peers_of("n990", order))
    reached = [other for host in order for other in peers_of(host, order)]
    assert min(reached.count(host) for host in order[:20]) >= 14
