"""Messages among ranks beside the collectives: real connections, and real processes that are stopped."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meetings import join, listen
from parallel.world.presence import Presence

ROOT = Path(__file__).resolve().parents[3]
PEER = """
import sys, time
sys.path += ["tests/helpers", "tests/helpers/programs"]
from meetings import join
from parallel.world.presence import Presence
presence = Presence(2, 3, lambda left: None)
presence.handle("who", lambda sender, payload: f"2, asked by {sender}")
join(presence, lambda: sys.argv[1])
print("there", flush=True)
time.sleep(60)
"""


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def three() -> list[Presence]:
    ranks = [Presence(rank, 3, lambda left: None) for rank in range(3)]
    where = listen(ranks[0])
    for rank in ranks[1:]:
        join(rank, lambda: where)
    until(lambda: ranks[0].present == (1, 2))
    return ranks


def test_messages_reach_rank_0_and_those_of_rank_0_every_rank(three: list[Presence]) -> None:
    got: list[list[tuple[int, Any]]] = [[], [], []]
    for rank, presence in enumerate(three):
        presence.handle("told", lambda sender, payload, rank=rank: got[rank].append((sender, payload)))
    for presence in three:
        presence.send("told", {"step": presence.rank})
        presence.send("nobody handles this")
    until(lambda: len(got[0]) == 3)
    assert sorted(got[0], key=str) == [(rank, {"step": rank}) for rank in range(3)] and got[1:] == [[], []]
    long = "é" * 300_000  # more than a packet, and than what is read at once
    three[0].broadcast("told", [long])
    until(lambda: (len(got[0]), len(got[1]), len(got[2])) == (4, 1, 1))
    assert got[0][3] == got[1][0] == got[2][0] == (0, [long])


def test_messages_of_a_rank_come_in_their_order_past_a_handler_that_fails(three: list[Presence]) -> None:
    got: list[int] = []

    def take(sender: int, payload: int) -> None:
        if payload == 3:
            raise KeyError("a bug")
        got.append(payload)

    three[0].handle("number", take)
    for number in range(100):
        three[1].send("number", number)
    until(lambda: len(got) == 99)
    assert got == [number for number in range(100) if number != 3]


def test_a_question_is_answered_by_every_rank_and_by_rank_0_alone(three: list[Presence]) -> None:
    for presence in three:
        presence.handle("double", lambda sender, payload, own=presence.rank: [payload * 2, sender, own])
    assert three[0].ask("double", 4, seconds=60) == {rank: [8, 0, rank] for rank in range(3)}
    assert three[2].ask("double", "x", seconds=60) == {0: ["xx", 2, 0]}
    started = time.monotonic()
    assert three[0].ask("unknown", seconds=60) == {} and time.monotonic() - started < 30, "all have said so"


def test_who_does_not_answer_is_missing_and_the_others_are_not_held_up(three: list[Presence]) -> None:
    held = threading.Event()
    three[0].handle("who", lambda sender, payload: "0")
    three[1].handle("who", lambda sender, payload: held.wait(60))
    three[2].handle("who", lambda sender, payload: "2")
    assert three[0].ask("who", seconds=0.3) == {0: "0", 2: "2"}
    answers: list[dict[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(three[0].ask("who", seconds=60)))
    asking.start()
    time.sleep(0.1)
    three[1]._peers[0].close()  # it leaves with the question under way: nobody waits for it any longer
    asking.join(30)
    assert answers == [{0: "0", 2: "2"}]
    held.set()


def test_a_process_that_is_stopped_does_not_answer_and_is_not_taken_for_gone() -> None:
    told: list[object] = []
    zero = Presence(0, 3, told.append)
    zero.handle("who", lambda sender, payload: "0")
    where = listen(zero)
    with subprocess.Popen(
        [sys.executable, "-c", PEER, where], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as peer:
        try:
            assert peer.stdout is not None and peer.stdout.readline() == "there\n"
            until(lambda: zero.present == (2,))
            assert zero.ask("who", seconds=60) == {0: "0", 2: "2, asked by 0"}
            os.kill(peer.pid, signal.SIGSTOP)
            assert zero.ask("who", seconds=0.3) == {0: "0"}
            for _ in range(40):  # what its end of the connection does not take is kept, and nobody waits
                zero.broadcast("much", "x" * 1_000_000)
            assert told == [] and zero.present == (2,)
            os.kill(peer.pid, signal.SIGCONT)
            assert zero.ask("who", seconds=60)[2] == "2, asked by 0"
        finally:
            peer.kill()
    until(lambda: len(told) == 1)


def test_a_single_process_sends_to_itself() -> None:
    got: list[Any] = []
    alone = Presence(0, 1, lambda left: None)
    alone.handle("x", lambda sender, payload: got.append(payload) or "answer")
    alone.send("x", 1)
    until(lambda: got == [1])
    alone.broadcast("x", 2)
    until(lambda: got == [1, 2])
    assert alone.ask("x", 3, seconds=60) == {0: "answer"}
