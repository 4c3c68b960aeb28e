"""The watchdogs of several ranks in one process, with a clock for the phases that the tests turn."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.watch import messages, watchdog
from trainer.watch import whereabouts as places
from trainer.watch.phases import STEP, Bounds, Phases
from trainer.watch.report import Finding
from trainer.watch.watchdog import Watchdog
from trainer.watch.whereabouts import RUNS, Standing, state_of_process


class Switch:
    """Ranks in one process: `silent` ranks get no message and answer no question."""

    def __init__(self, world: int) -> None:
        self.ends = [End(self, rank) for rank in range(world)]
        self.silent: set[int] = set()
        self.asked: list[tuple[str, list[int]]] = []


class End:
    def __init__(self, switch: Switch, rank: int) -> None:
        self.switch, self.rank, self.host = switch, rank, f"n{rank}"
        self.handlers: dict[str, Callable[[int, Any], Any]] = {}

    @property
    def world(self) -> int:
        return len(self.switch.ends)

    def host_of(self, rank: int) -> str:
        return self.switch.ends[rank].host

    def handle(self, kind: str, handler: Callable[[int, Any], Any]) -> None:
        self.handlers[kind] = handler

    def send(self, kind: str, payload: Any = None) -> None:
        if 0 not in self.switch.silent:
            self.switch.ends[0].handlers[kind](self.rank, payload)

    def broadcast(self, kind: str, payload: Any = None) -> None:
        for end in self.switch.ends:
            if end.rank not in self.switch.silent and kind in end.handlers:
                end.handlers[kind](self.rank, payload)

    def ask(
        self, kind: str, payload: Any = None, *, seconds: float, ranks: Collection[int] | None = None
    ) -> dict[int, Any]:
        asked = [end for end in self.switch.ends if ranks is None or end.rank in ranks]
        self.switch.asked.append((kind, [end.rank for end in asked]))
        there = [end for end in asked if end.rank not in self.switch.silent]
        return {end.rank: end.handlers[kind](self.rank, payload) for end in there}


class World:
    """Ranks with watchdogs; what they wrote and with which code they left."""

    def __init__(self, world: int, folder: Path) -> None:
        self.switch = Switch(world)
        self.now = 0.0
        self.left: dict[int, int] = {}
        self.reports: list[tuple[int, Finding, str]] = []
        self.ended = False
        self.over = threading.Event()  # the test is over
        self._file = folder / "hang.txt"
        self.phases = [Phases(lambda: self.now) for _ in range(world)]
        self.watchdogs = [self._watchdog(rank) for rank in range(world)]

    def _watchdog(self, rank: int) -> Watchdog:
        def write(text: str, finding: Finding, over: Standing) -> str:
            with self._file.open("x") as file:
                file.write(text)
            self.reports.append((rank, finding, text))
            return str(self._file)

        return Watchdog(
            self.phases[rank],
            Bounds(10.0, 1.0, 60.0),
            self.switch.ends[rank],
            write=write,
            ended=lambda: self.ended,
            leave=lambda code: self._leave(rank, code),
        )

    def _leave(self, rank: int, code: int) -> None:
        """End a rank: its watchdog does nothing any more, as in a process that has ended."""
        self.left.setdefault(rank, code)
        self.watchdogs[rank]._stopped = True
        if threading.current_thread() is self.watchdogs[rank]._thread:  # else a message of rank 0's
            self.over.wait(30)

    def step(self, number: int, seconds: float) -> None:
        for phases in self.phases:
            phases.main.next(STEP, number)
        self.now += seconds


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], World]]:
    made: list[World] = []
    monkeypatch.setattr(watchdog, "FIRST_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(watchdog, "LATER_SECONDS", 0.0)

    def begin(ranks: int) -> World:
        made.append(World(ranks, tmp_path))
        for each in made[-1].watchdogs:
            each.begin()
        for number in range(1, 6):
            made[-1].step(number, 0.2)
        return made[-1]

    yield begin
    for one in made:
        one.over.set()
    for each in (each for world in made for each in world.watchdogs):
        each.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def looks() -> None:
    """Give the watchdogs time for several looks."""
    time.sleep(0.7)


def test_one_hang_is_reported_once_and_all_ranks_leave(
    world: Callable[[int], World], capfd: pytest.CaptureFixture[str]
) -> None:
    three = world(3)
    looks()
    assert not three.left
    three.step(6, 3.0)
    until(lambda: len(three.left) == 3)
    assert set(three.left.values()) == {1} and [rank for rank, _, _ in three.reports] == [0]
    said = capfd.readouterr().err  # other tests' threads may write in between
    assert said.count("hang: ") == said.count("hang: step 6 has lasted 3 s, and may last 2 s: ") == 1, said
    assert said.count("hang.txt; all ranks end") == 1, said


def test_a_rank_that_does_not_answer_is_named(world: Callable[[int], World]) -> None:
    three = world(3)
    three.switch.silent = {1}
    three.step(6, 3.0)
    until(lambda: {0, 2} <= three.left.keys())
    ((_, finding, text),) = three.reports
    assert finding.ranks == (1,) and finding.hosts == ("n1",) and "rank 1: no answer" in text


def test_where_rank_0_does_not_answer_one_other_reports(world: Callable[[int], World]) -> None:
    four = world(4)
    four.switch.silent = {0}
    four.watchdogs[0].stop()
    four.step(6, 3.0)
    until(lambda: {1, 2, 3} <= four.left.keys())
    ((rank, finding, _),) = four.reports
    assert rank != 0 and finding.ranks == (0,) and finding.hosts == ("n0",)


def test_a_step_that_ends_while_rank_0_asks_is_no_hang(world: Callable[[int], World]) -> None:
    two = world(2)
    ask = two.switch.ends[0].ask

    def asked_late(
        kind: str, payload: Any = None, *, seconds: float, ranks: Collection[int] | None = None
    ) -> dict[int, Any]:
        if two.phases[0].main.now is not None and two.phases[0].main.now.step == 6:
            two.step(7, 0.1)
        return ask(kind, payload, seconds=seconds, ranks=ranks)

    two.switch.ends[0].ask = asked_late  # type: ignore[method-assign]
    two.step(6, 3.0)
    looks()
    assert not two.left and not two.reports


def test_ranks_wait_for_one_that_compiles_and_for_one_in_a_debugger(
    world: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world(2)
    held = {1: places.COMPILER}
    look = messages.look

    def looked(phases: Phases, bounds: Bounds, *, rank: int, host: str) -> tuple[Any, str]:
        found, text = look(phases, bounds, rank=rank, host=host)
        document = found.to_json() | {"held": held.get(rank, "")}
        if held.get(rank) == places.COMPILER:  # as `look` itself does
            document["standings"] = [{**s, "bound_seconds": 60.0} for s in document["standings"]]
        return places.Whereabouts.from_json(document), text

    monkeypatch.setattr(messages, "look", looked)
    two.step(6, 30.0)
    looks()
    assert not two.left
    held[1] = places.DEBUGGER
    two.now += 1000.0
    looks()
    assert not two.left
    held.clear()
    asked = len(two.switch.asked)
    until(lambda: len(two.switch.asked) > asked + 4)
    assert not two.left, "the time in which a rank was held counts for no rank"
    two.now += 100.0
    until(lambda: len(two.left) == 2)


def test_after_another_ranks_end_nothing_is_a_hang(world: Callable[[int], World]) -> None:
    two = world(2)
    two.ended = True
    two.step(6, 100.0)
    looks()
    assert not two.left


def test_a_failure_of_the_watchdog_itself_is_told_once_and_ends_neither_the_run_nor_the_watch(
    world: Callable[[int], World], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    one = world(1)
    look = messages.look
    monkeypatch.setattr(messages, "look", lambda *rest, **more: 1 / 0)
    one.step(6, 100.0)
    looks()
    assert not one.left
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("rank 0: the watchdog could not look, and looks again: ZeroDivisionError: ")
    monkeypatch.setattr(messages, "look", look)
    until(lambda: 0 in one.left)


def test_one_rank_a_machine_is_asked_why_others_there_do_not_answer(world: Callable[[int], World]) -> None:
    six = world(6)
    for end, host in zip(six.switch.ends, ("n1", "n1", "n1", "n2", "n2", "n3"), strict=True):
        end.host = host
    six.switch.silent = {1, 5}
    six.step(6, 3.0)
    until(lambda: {0, 2, 3, 4} <= six.left.keys())
    # Rank 0 may find out twice, where another rank's word reaches it meanwhile.
    assert {tuple(ranks) for kind, ranks in six.switch.asked if kind == "hang/state"} == {(0,)}
    ((_, finding, _),) = six.reports
    assert finding.ranks == (1, 5) and finding.hosts == ("n1", "n3")
    assert f"do not answer: {RUNS}" in finding.lines[0], "the process of all, which rank 0 looked at"


def test_a_run_folder_that_hangs_does_not_hold_up_the_lines(
    world: Callable[[int], World], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "WRITE_SECONDS", 0.2)
    one = world(1)
    go = threading.Event()
    one.watchdogs[0]._write = lambda *given: str(go.wait(10))  # type: ignore[method-assign]
    one.step(6, 3.0)
    until(lambda: 0 in one.left)
    go.set()
    assert "no file, for it could not be written within 0.2 s" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_tells_why_a_process_does_not_answer() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        with contextlib.ExitStack() as stack:
            stack.callback(child.kill)
            until(lambda: state_of_process(child.pid) == RUNS)
            os.kill(child.pid, signal.SIGSTOP)
            until(lambda: "stopped by a signal" in state_of_process(child.pid))
        until(lambda: state_of_process(child.pid) == "it has ended")
        child.wait()
    assert state_of_process(child.pid) == "its process is gone"
