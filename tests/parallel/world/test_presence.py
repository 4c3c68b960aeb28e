"""Ranks hear of the end of one, however it ends: real connections and real deaths, no torch."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import meetings
from meetings import HOST, listen
from parallel.world.arrivals import Departure
from parallel.world.meeting import find
from parallel.world.presence import Presence
from parallel.world.rendezvous import Place

ROOT = Path(__file__).resolve().parents[3]
PEER = """
import sys, time
sys.path += ["tests/helpers", "tests/helpers/programs"]
from meetings import join, listen
from parallel.world.presence import Presence
rank, where = int(sys.argv[1]), sys.argv[2]
presence = Presence(rank, 3, lambda left: None)
if rank == 0:
    where = listen(presence)
else:
    join(presence, lambda: where)
print(where, flush=True)
time.sleep(60)
"""


def peer(rank: int, where: str = "") -> "subprocess.Popen[str]":
    """A rank in a process of its own; it has said that it is there."""
    command = [sys.executable, "-c", PEER, str(rank), where]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def heard(count: int, *lists: list[Departure]) -> bool:
    deadline = time.monotonic() + 60
    while any(len(each) < count for each in lists) and time.monotonic() < deadline:
        time.sleep(0.005)
    return all(len(each) == count for each in lists)


def join(presence: Presence, *announced: str, patience_seconds: float = 60.0) -> None:
    """Each reading of the announcement gives the next of `announced`, and the last for good."""
    left = list(announced)
    announced = lambda: left.pop(0) if len(left) > 1 else left[0]  # noqa: E731
    meetings.join(presence, announced, patience_seconds=patience_seconds)


@pytest.fixture
def three() -> tuple[list[Presence], list[list[Departure]], Callable[[int], None], str]:
    """(three ranks, what each has heard, a function that lets one join, where); rank 0 is there."""
    told: list[list[Departure]] = [[], [], []]
    ranks = [Presence(rank, 3, told[rank].append) for rank in range(3)]
    where = listen(ranks[0])
    return ranks, told, lambda rank: join(ranks[rank], where), where


def test_a_killed_rank_is_heard_of_by_all(three: tuple) -> None:  # type: ignore[type-arg]
    ranks, told, join, where = three
    join(2)
    with peer(1, where) as process:
        assert process.stdout is not None and process.stdout.readline() == f"{where}\n"
        process.kill()
        assert heard(1, told[0], told[2])
    assert told[0] == told[2] == [Departure(1)]
    assert f"rank 1 on {ranks[0].host} is gone without a word" in str(ranks[2].first_departure(0.0))


def test_the_end_of_rank_0_is_heard_of_too() -> None:
    told: list[Departure] = []
    with peer(0) as process:
        assert process.stdout is not None
        join(Presence(1, 3, told.append), process.stdout.readline())
        process.kill()
        assert heard(1, told)
    assert told == [Departure(0)]


def test_a_rank_that_leaves_in_words_is_heard_of_once_by_those_there_and_those_to_come(
    three: tuple,  # type: ignore[type-arg]
) -> None:
    ranks, told, join, _ = three
    join(1)
    ranks[1].leave(75, "asked to stop", agreed=False)
    assert heard(1, told[0]) and ranks[1].first_departure(0.0) is None, "it is no cause of its own"
    ranks[1]._peers[0].close()  # as its process's end does
    join(2)
    assert heard(1, told[2])
    assert told[0] == told[2] == [Departure(1, 75, "asked to stop")], (
        "and the connection's end is not told besides"
    )
    assert str(ranks[2].first_departure(0.0)) == f"rank 1 on {ranks[2].host}: asked to stop"


def test_a_rank_0_that_leaves_alone_waits_for_those_it_has_to_tell(three: tuple) -> None:  # type: ignore[type-arg]
    ranks, told, join, _ = three
    leaving = threading.Thread(target=ranks[0].leave, args=(75, "asked to stop"), kwargs={"agreed": False})
    leaving.start()
    for rank in (1, 2):
        assert leaving.is_alive()
        join(rank)
    leaving.join(timeout=60)
    assert not leaving.is_alive()
    assert heard(1, told[1], told[2]) and told[1] == told[2] == [Departure(0, 75, "asked to stop")]


def test_ranks_that_leave_together_are_no_cause(three: tuple) -> None:  # type: ignore[type-arg]
    ranks, told, join, _ = three
    join(1)
    join(2)
    ranks[1].leave(0, "", agreed=True)
    ranks[2].leave(1, "broken", agreed=False)
    assert heard(1, told[0]) and told[0] == [Departure(2, 1, "broken")] and told[2] == []
    assert ranks[0].first_departure(0.0) == Departure(2, 1, "broken"), "rank 1 had left before"


def test_however_many_leave_each_other_rank_is_told_of_one() -> None:
    """A node's end, or that of many ranks by one fault, is not as many messages to every rank."""
    world = 24
    told: list[list[Departure]] = [[] for _ in range(world)]
    ranks = [Presence(rank, world, told[rank].append) for rank in range(world)]
    where = listen(ranks[0])
    for rank in ranks[1:]:
        meetings.join(rank, lambda: where)
    for rank in ranks[12:]:
        rank.leave(1, f"broken {rank.rank}", agreed=False)
    assert heard(1, *told[:12])
    for rank in ranks[1:12]:
        rank.handle("end", lambda sender, payload: "all before has come")
    ranks[0].handle("end", lambda sender, payload: "")
    assert len(ranks[0].ask("end", seconds=60)) >= 12
    assert [len(departures) for departures in told[:12]] == [1] * 12
    assert len({departures[0] for departures in told[:12]}) == 1, "and all of the same"


def test_a_stranger_is_not_listened_to(three: tuple) -> None:  # type: ignore[type-arg]
    _, told, join, where = three
    port = int(where.split()[0])
    for words in (b'{"rank": 1, "key": "x"}\n', b"GET / HTTP/1.1\r\n\r\n", b"[]\n"):
        with socket.create_connection((HOST, port)) as stranger:
            stranger.sendall(words)
            assert stranger.recv(100) == b""
    join(1)
    assert told == [[], [], []]


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """The port of a process that is no rank 0: it says `answer` to whoever connects; None: nothing at all."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            kept = []
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])
                    if answer is not None:
                        kept[-1].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "there",
    [
        "nobody",
        pytest.param("a silent one", marks=pytest.mark.slow),  # three times five seconds
        "a talkative one",
        "an earlier rank 0",
    ],
)
def test_what_a_dead_start_announced_is_passed_over(there: str, three: tuple) -> None:  # type: ignore[type-arg]
    """A launcher that starts ranks again keeps the store, with what the dead ones left in it."""
    ranks, told, _, where = three
    with ExitStack() as stack:
        if there == "an earlier rank 0":  # which has a rank 1 already, and hears nothing of the later one
            earlier = [Presence(rank, 3, told[2].append) for rank in (0, 1)]
            stale = listen(earlier[0])
            join(earlier[1], stale)
        elif there == "nobody":
            with listening(None) as port:
                pass
            stale = f"{port} 0123456789abcdef"
        else:
            answer = None if there == "a silent one" else b"220 mail.example ESMTP\r\n"
            stale = f"{stack.enter_context(listening(answer))} 0123456789abcdef"
        join(ranks[1], stale, stale, stale, where)
        assert ranks[1].arrivals.key == ranks[0].arrivals.key
        ranks[1].leave(1, "broken", agreed=False)
        assert heard(1, told[0]) and told == [[Departure(1, 1, "broken")], [], []]


def test_a_rank_0_that_is_nowhere_is_an_error_in_time() -> None:
    with listening(b"") as port:
        pass
    with pytest.raises(RuntimeError, match=rf"^rank 1 has not reached rank 0 within 0\.1 s: {HOST}:{port}: "):
        join(Presence(1, 3, lambda left: None), f"{port} 0123456789abcdef", patience_seconds=0.1)


def test_rank_0_is_found_on_another_machine_than_the_store() -> None:
    """Of torchrun's agents one holds the store, and another may start rank 0."""
    told: list[Departure] = []
    zero, one = Presence(0, 3, told.append), Presence(1, 3, lambda left: None)
    place = Place("192.0.2.254", (9,), announced=True)  # another machine's: the way there is not loopback
    said = find.listen(zero, place, dict(meetings.ABOUT))
    port, key, *addresses = said.split()
    targets = find.announced(f"{port} {key} 127.0.0.99 127.0.0.1", "127.0.0.98")
    assert [target.address for target in targets] == ["127.0.0.99", "127.0.0.1", "127.0.0.98"]
    find.reach(one, lambda: targets, dict(meetings.ABOUT), patience_seconds=60)
    assert not any(address.startswith("127.") for address in addresses)
    one.leave(1, "broken", agreed=False)
    assert heard(1, told)
