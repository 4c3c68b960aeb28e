"""Which rank a process is, from each launcher's variables; and what a signal does."""

import os
import signal

import pytest

from parallel import runtime


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (3, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, (5, 6, 2)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 2, 0)),
    ],
)
def test_identity(env: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert runtime._identity(env) == expected


def test_a_single_process_joins_nothing() -> None:
    found = runtime.start(env={})
    assert (found.rank, found.world, found.is_writer, found.stopping) == (0, 1, True, False)
    found.stop()
    found.stop()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 is outside WORLD_SIZE=4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK=x"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "needs MASTER_ADDR"),
    ],
)
def test_variables_that_contradict(env: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        runtime.start(env=env)


def test_the_first_signal_asks_and_the_second_acts() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        found = runtime.start(env={})
        found.watch_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.stopping and not received
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        found.stop()
    finally:
        signal.signal(signal.SIGTERM, before)
