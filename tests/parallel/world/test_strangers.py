"""What comes to rank 0's port from processes that are no ranks, and what rank 0 cannot take: real sockets."""

import contextlib
import errno
import json
import os
import resource
import socket
import time

import pytest

import meetings
from meetings import HOST
from parallel.world import wire
from parallel.world.arrivals import Departure
from parallel.world.meeting import find
from parallel.world.presence import Presence
from parallel.world.rendezvous import Place


def heard(count: int, told: list[Departure]) -> None:
    deadline = time.monotonic() + 20
    while len(told) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


HELLO = {
    "protocol": wire.PROTOCOL,
    "rank": 1,
    "world": 3,
    "host": "n",
    "net": "n",
    "device": "cpu",
    "gpu": "",
}
HOSTILE = {
    "brackets": b"[" * 3900 + b"\n",
    "no number": b'{"key":"","rank":Infinity,"world":3}\n',
    "a number without an end": b'{"protocol":"%b","key":"","rank":1%b}\n'
    % (wire.PROTOCOL.encode(), b"0" * 3900),
    "no text": bytes(range(256)) + b"\n",
    "a long line": b'{"rank":1,"key":"' + b"x" * 100_000 + b'"}\n',
    "a long line without an end": b"x" * 100_000,
    "another program": b"GET / HTTP/1.1\r\n\r\n",
    "an earlier version": b'{"key":"","rank":1,"world":3,"host":"n","net":"n","device":"cpu","gpu":""}\n',
    "no words": json.dumps({**HELLO, "key": ""} | {"host": ["n"], "net": {}}).encode() + b"\n",
    "a rank of infinity": json.dumps({**HELLO, "key": ""} | {"rank": float("inf")}).encode() + b"\n",
    "true": json.dumps({**HELLO, "key": ""} | {"rank": True}).encode() + b"\n",
    "a world of a million digits": json.dumps({**HELLO, "key": ""} | {"world": 10**3000}).encode() + b"\n",
    "a departure before it is here": b'%b\n{"departure":{"rank":2}}\n'
    % json.dumps({**HELLO, "key": ""}).encode(),
}


@pytest.fixture
def by_port_alone() -> tuple[Presence, list[Departure], int]:
    """A rank 0 of three as MASTER_ADDR and MASTER_PORT make it, without a key; what it heard; its port."""
    told: list[Departure] = []
    zero = Presence(0, 3, told.append)
    where = find.listen(zero, Place(HOST, (0,), one_machine=True), dict(meetings.ABOUT))
    return zero, told, int(where.split()[0])


def reach(presence: Presence, port: int) -> None:
    target = find.Target(HOST, port, "")
    find.reach(presence, lambda: [target], dict(meetings.ABOUT), patience_seconds=60)


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_a_stranger_sends_its_connection_alone_is_closed(
    what: str,
    by_port_alone: tuple[Presence, list[Departure], int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    zero, told, port = by_port_alone
    for _ in range(3):
        with (
            socket.create_connection((HOST, port), timeout=20) as stranger,
            contextlib.suppress(ConnectionError),  # it is closed before all has been read
        ):
            stranger.sendall(HOSTILE[what])
            while stranger.recv(1 << 16):
                pass
    for rank in (1, 2):
        reach(Presence(rank, 3, lambda left: None), port)
    assert zero.arrivals.settled.wait(20) and not zero.arrivals.refused and told == []
    (said,) = capfd.readouterr().err.splitlines()
    assert "closed a connection from 127.0.0.1, which is no rank's of this run: " in said and len(said) < 400


def test_a_rank_of_another_version_is_told_so(by_port_alone: tuple[Presence, list[Departure], int]) -> None:
    with socket.create_connection((HOST, by_port_alone[2]), timeout=20) as other:
        other.sendall(json.dumps({**HELLO, "key": "", "protocol": "germinal/0"}).encode() + b"\n")
        assert b"another version of Germinal" in other.recv(1000)


def test_a_message_that_a_rank_cannot_read_ends_that_connection_alone(
    by_port_alone: tuple[Presence, list[Departure], int], capfd: pytest.CaptureFixture[str]
) -> None:
    zero, told, port = by_port_alone
    one = Presence(1, 3, lambda left: None)
    reach(one, port)
    one._peers[0].send(b'{"departure": {"who": 1}}\n')
    heard(1, told)
    assert told == [Departure(1)]
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"rank 1 on {zero.host} sent what this rank cannot read (TypeError: ")
    reach(Presence(2, 3, lambda left: None), port)
    assert zero.arrivals.settled.wait(20)


def test_a_rank_0_without_descriptors_says_so_and_does_not_spin(
    by_port_alone: tuple[Presence, list[Departure], int], capfd: pytest.CaptureFixture[str]
) -> None:
    zero, _, port = by_port_alone
    waiting = [socket.socket() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free descriptor is the limit.
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        for each in waiting:
            each.connect((HOST, port))
        time.sleep(0.1)
        began = time.process_time()
        time.sleep(1.2)
        used_seconds = time.process_time() - began
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in waiting:
            each.close()
    (said,) = capfd.readouterr().err.splitlines()
    assert f"cannot let more ranks in: Too many open files (it may open {lowest} files" in said
    assert used_seconds < 0.4
    for rank in (1, 2):
        reach(Presence(rank, 3, lambda left: None), port)
    assert zero.arrivals.settled.wait(20)


def test_a_late_rank_is_told_of_one_of_many_that_left(
    by_port_alone: tuple[Presence, list[Departure], int],
) -> None:
    zero, _, port = by_port_alone
    for rank in range(3, 40):
        zero._note(Departure(rank, 1))
    told: list[Departure] = []
    one = Presence(1, 3, told.append)
    reach(one, port)
    heard(1, told)
    one.handle("end", lambda sender, payload: "all before has come")
    assert zero.ask("end", seconds=20, ranks=[1]) == {1: "all before has come"}
    assert told == [Departure(3, 1)] and len(one._gone) == 1


def test_a_link_that_a_send_finds_lost_is_not_a_killed_rank() -> None:
    class Lost(socket.socket):
        def send(self, *given: object) -> int:  # type: ignore[override]
            raise OSError(errno.ETIMEDOUT, "timed out")

    with socket.create_server((HOST, 0)) as server, Lost() as lost:
        lost.connect(server.getsockname())
        peer = wire.Connection(lost, 1)
        peer.send({"kind": "x"})
        assert peer.timed_out
        server.accept()[0].close()
        while peer.receive()[1]:
            time.sleep(0.005)
        assert peer.timed_out, "what `receive` sees afterwards is an end like any other"
