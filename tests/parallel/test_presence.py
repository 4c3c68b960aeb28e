"""Ranks hear of the end of one, however it ends: real connections and real deaths, no torch."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from parallel.presence import Left, Presence

HOST = "127.0.0.1"
PEER = """
import sys, time
from parallel.presence import Presence
rank, where = int(sys.argv[1]), sys.argv[2]
presence = Presence(rank, 3, lambda left: None)
print(presence.host() if rank == 0 else presence.join("127.0.0.1", where) or "there", flush=True)
time.sleep(60)
"""


def peer(rank: int, where: str = "") -> "subprocess.Popen[str]":
    """A rank in a process of its own; it has said that it is there."""
    command = [sys.executable, "-c", PEER, str(rank), where]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def heard(count: int, *lists: list[Left]) -> bool:
    deadline = time.monotonic() + 60
    while any(len(each) < count for each in lists) and time.monotonic() < deadline:
        time.sleep(0.005)
    return all(len(each) == count for each in lists)


@pytest.fixture
def three() -> tuple[list[Presence], list[list[Left]], Callable[[int], None], str]:
    """(three ranks, what each has heard, a function that lets one join, where); rank 0 is there."""
    told: list[list[Left]] = [[], [], []]
    ranks = [Presence(rank, 3, told[rank].append) for rank in range(3)]
    where = ranks[0].host()
    return ranks, told, lambda rank: ranks[rank].join(HOST, where), where


def test_a_killed_rank_is_heard_of_by_all(three: tuple) -> None:  # type: ignore[type-arg]
    ranks, told, join, where = three
    join(2)
    with peer(1, where) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        process.kill()
        assert heard(1, told[0], told[2])
    assert told[0] == told[2] == [Left(1)]
    assert "rank 1 is gone without a word" in str(ranks[2].first(0.0))


def test_the_end_of_rank_0_is_heard_of_too() -> None:
    told: list[Left] = []
    with peer(0) as process:
        assert process.stdout is not None
        Presence(1, 3, told.append).join(HOST, process.stdout.readline())
        process.kill()
        assert heard(1, told)
    assert told == [Left(0)]


def test_a_rank_that_leaves_in_words_is_heard_of_once_by_those_there_and_those_to_come(
    three: tuple,  # type: ignore[type-arg]
) -> None:
    ranks, told, join, _ = three
    join(1)
    ranks[1].leave(75, "asked to stop", agreed=False)
    assert heard(1, told[0]) and ranks[1].first(0.0) is None, "it is no cause of its own"
    ranks[1]._peers[0].shutdown(socket.SHUT_RDWR)  # as its process's end does
    join(2)
    assert heard(1, told[2])
    assert told[0] == told[2] == [Left(1, 75, "asked to stop")], "and not of the connection's end as well"
    assert str(ranks[2].first(0.0)) == "rank 1: asked to stop"


def test_a_rank_0_that_leaves_alone_waits_for_those_it_has_to_tell(three: tuple) -> None:  # type: ignore[type-arg]
    ranks, told, join, _ = three
    leaving = threading.Thread(target=ranks[0].leave, args=(75, "asked to stop"), kwargs={"agreed": False})
    leaving.start()
    for rank in (1, 2):
        assert leaving.is_alive()
        join(rank)
    leaving.join(timeout=60)
    assert not leaving.is_alive()
    assert heard(1, told[1], told[2]) and told[1] == told[2] == [Left(0, 75, "asked to stop")]


def test_ranks_that_leave_together_are_no_cause(three: tuple) -> None:  # type: ignore[type-arg]
    ranks, told, join, _ = three
    join(1)
    join(2)
    ranks[1].leave(0, "", agreed=True)
    assert heard(1, told[0], told[2])
    assert ranks[0].first(0.0) is None and ranks[2].first(0.0) is None


def test_a_stranger_is_not_listened_to(three: tuple) -> None:  # type: ignore[type-arg]
    _, told, join, where = three
    port = int(where.split()[0])
    for words in (b'{"rank": 1, "key": "x"}\n', b"GET / HTTP/1.1\r\n\r\n", b"[]\n"):
        with socket.create_connection((HOST, port)) as stranger:
            stranger.sendall(words)
            assert stranger.recv(100) == b""
    join(1)
    assert told == [[], [], []]
