"""Stacks of this process's threads, and what they say in words."""

import contextlib
import os
import pdb
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.messages import last_collective
from ranks import RankContext, RankPools
from trainer.checkpoint.saving.attempt import Attempt
from trainer.checkpoint.saving.board import FolderBoard
from trainer.ranks import Collectives
from trainer.watch.stacks import Frame, Stack, call, is_service, stacks


@contextmanager
def thread(function: Callable[[], object], name: str = "mine") -> Iterator[Callable[[], Stack]]:
    """A thread that runs `function`, and a look at its stack."""

    def work() -> None:
        with contextlib.suppress(RuntimeError, OSError):  # of what the test ends it by
            function()

    running = threading.Thread(target=work, name=name, daemon=True)
    running.start()
    yield lambda: next(stack for stack in stacks() if stack.thread == running.ident)
    running.join(30.0)  # or the next test would find it at work


def until(found: Callable[[], Stack], condition: Callable[[Stack], bool]) -> Stack:
    for _ in range(10_000):
        if condition(stack := found()):
            return stack
        threading.Event().wait(0.001)
    raise AssertionError(found().text())


def test_a_stack_names_the_innermost_call_and_our_own(tmp_path: Path) -> None:
    board = FolderBoard(tmp_path / "notes")
    attempt = Attempt(tmp_path, 1, "nonce", rank=0, world=2, patience=60.0, board=board, guard=lambda: None)
    with thread(attempt.await_others) as look:
        stack = until(look, lambda stack: "_poll" in stack.in_words() and "time.sleep" in stack.text())
        assert stack.in_words().startswith("trainer/checkpoint/saving/attempt.py:")
        assert stack.waits_for_ranks(()) and not stack.waits_for_a_thread and not is_service(stack)
        board.post("nonce-1-failed", b"")  # ends the thread


def test_a_thread_that_waits_for_another_names_the_other(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pool = ThreadPoolExecutor(1)
    from trainer.checkpoint.saving.attempt import write_json  # opens the file that it is given

    with thread(lambda: pool.submit(write_json, fifo, {}).result()) as look:
        waiting = until(look, lambda stack: stack.waits_for_a_thread)
        other = until(
            lambda: next((stack for stack in stacks() if stack.name.startswith("ThreadPool")), waiting),
            lambda stack: "write_durably" in stack.in_words(),
        )
        words = call(waiting, [stack for stack in stacks() if stack.name in ("mine", other.name)])
        assert f"for the thread {other.name}, which is in common/files.py:" in words
        assert not waiting.waits_for_ranks(("gloo:all_reduce",)), "it waits for its own process"
        fifo.read_bytes()
    pool.shutdown()


def test_a_source_file_on_a_disk_that_does_not_answer_is_left_out(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    os.mkfifo(slow)  # opening it for reading lasts until somebody writes
    names: dict[str, Any] = {"sleep": time.sleep, "ended": []}
    text = "def work():\n    while not ended:\n        sleep(0.01)\n"
    exec(compile(text, str(slow), "exec"), names)
    try:
        with thread(lambda: names["work"](), "on the slow disk") as look:
            found = [look() for _ in range(3)]
            names["ended"].append(True)
    finally:
        with contextlib.suppress(OSError):  # there is no reader
            os.close(os.open(slow, os.O_WRONLY | os.O_NONBLOCK))
    assert {(stack.frames[-1].function, stack.source) for stack in found} == {("work", "")}


def test_a_thread_that_waits_for_work_is_not_what_another_waits_for() -> None:
    idle: queue.Queue[None] = queue.Queue()
    with thread(idle.get, "idle") as look:
        stack = until(look, lambda stack: stack.waits_for_a_thread)
        others = [other for other in stacks() if other.name in ("idle", "MainThread")]  # none of other tests
        assert call(stack, others) == stack.in_words()
        idle.put(None)


def test_a_debugger_and_a_compiler_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = threading.Event(), threading.Event()

    def prompt(self: pdb.Pdb, *rest: object) -> None:
        asked.set()
        go.wait(10)
        self.set_continue()

    monkeypatch.setattr(pdb.Pdb, "cmdloop", prompt)
    with thread(lambda: pdb.Pdb(nosigint=True, readrc=False).set_trace()) as look:
        assert asked.wait(10) and look().is_in_debugger
        go.set()
    compiling = Frame("torch/_inductor/codecache.py", 7, "load")
    assert Stack("main", 1, (Frame("trainer/loop.py", 1, "train"), compiling)).compiles
    # The frames of a call of what is compiled already, by torch 2.13.
    calling = ("torch/_dynamo/eval_frame.py", "torch/_inductor/output_code.py", "torch/_ops.py")
    assert not Stack("main", 1, tuple(Frame(file, 1, "__call__") for file in calling)).compiles


@pytest.mark.parametrize(
    ("innermost", "source", "pending", "waits"),
    [
        ("torch/distributed/distributed_c10d.py", "work.wait()", (), True),
        ("parallel/messages/collectives.py", "self.work.wait()", ("gloo:all_to_all",), True),
        ("parallel/gradients/sums.py", "return sums.tolist()", ("nccl:all_reduce",), True),
        ("torch/autograd/graph.py", "return engine(…)", ("nccl:all_reduce",), True),
        ("torch/autograd/graph.py", "return engine(…)", (), False),
        ("user/hook.py", "while True: pass", ("nccl:all_gather",), False),
    ],
)
def test_who_waits_for_other_ranks(
    innermost: str, source: str, pending: tuple[str, ...], waits: bool
) -> None:
    stack = Stack("MainThread", 1, (Frame("trainer/loop.py", 1, "train"), Frame(innermost, 7, "f")), source)
    assert stack.waits_for_ranks(pending) is waits


def in_a_collective_alone(context: RankContext) -> tuple[str, bool, list[str]]:
    """Rank 0 is in an all-reduce, in a thread, that rank 1 calls when rank 0 has looked."""
    group = dist.new_group(range(context.world))

    def reduce() -> None:
        dist.all_reduce(torch.ones(3), group=group)

    if context.rank == 1:
        Collectives().gather("rank 0 has looked")
        reduce()
        return "", True, []
    with thread(reduce) as look:
        stack = until(look, lambda stack: stack.waits_for_ranks(()))
        pending = last_collective.unfinished()
        Collectives().gather("rank 0 has looked")
    return stack.in_words(), stack.waits_for_ranks(pending), pending


def test_the_collective_under_way_is_in_the_recorder(ranks: RankPools) -> None:
    (words, waits, pending), _ = ranks(2).run(in_a_collective_alone)
    assert "all_reduce" in words and waits
    assert any(line.startswith("gloo:all_reduce number ") and "[[3]] Float" in line for line in pending)


def test_entries_of_a_recorder_in_words() -> None:
    entry = {
        "profiling_name": "nccl:all_reduce",
        "process_group": ["7", "dp_shard"],
        "collective_seq_id": 41,
        "p2p_seq_id": 3,
        "is_p2p": False,
        "input_sizes": [[1024]],
        "input_dtypes": ["BFloat16"],
        "state": "started",
        "retired": False,
    }
    later = {**entry, "collective_seq_id": 42}
    done = {**entry, "collective_seq_id": 40, "state": "completed"}
    send = {**entry, "process_group": ["9", "undefined"], "is_p2p": True, "profiling_name": "nccl:send 0->1"}
    assert last_collective.describe([done, entry, later, send]) == [
        "nccl:all_reduce number 41 of group 7 (dp_shard), [[1024]] BFloat16",
        "nccl:send 0->1 number 3 of group 9, [[1024]] BFloat16",
    ]
