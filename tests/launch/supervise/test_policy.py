"""What follows the end of the ranks, as a table."""

import signal

import pytest

from launch.supervise.policy import WAITS, Again, Attempt, Leave, Stop, decide

KILL = -signal.SIGKILL


def failed(step: int, *, saved: tuple[int, int] = (0, 0), code: int = KILL, **more: object) -> Attempt:
    found = {"under_way": True, "rank": 1, "host": "n2"} | more
    return Attempt(code, step, *saved, **found)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        (Attempt(0, 100, 80, 100, under_way=True), 0, "done"),
        (Attempt(2), 2, "wrong"),
        (Attempt(2, 50, under_way=True), 2, "wrong"),
        (Attempt(75, 41, 0, 41, asked_to_stop=True, under_way=True), 75, "asked to stop"),
        (Attempt(75), 75, "to be run again"),  # another process holds the folder
        (Attempt(130, 41, 0, 41, asked_to_stop=True, under_way=True), 130, "interrupted"),
        (Attempt(KILL, 41, asked_to_stop=True, under_way=True), 1, "asked to stop, and the run was ended"),
        (Attempt(1, 0), 1, "the first start failed"),
        (Attempt(KILL, 40, 40, 40, rank=1), 1, "the first start failed"),
        (failed(41, code=1, repeats=True), 1, "would come again"),
    ],
)
def test_these_ends_are_final(last: Attempt, code: int, words: str) -> None:
    decision = decide([last], restarts=3)
    assert isinstance(decision, Leave) and decision.code == code
    assert words in decision.reason


def test_a_killed_rank_is_started_again_and_named() -> None:
    assert decide([failed(41, saved=(0, 40))], restarts=3) == Again(
        "rank 1 on n2 was ended by SIGKILL at step 41: starting again from step 40 (restart 1 of 3)", 0.0, 1
    )
    assert isinstance(decide([failed(41, saved=(0, 40))], restarts=0), Leave)


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (failed(7), "from the beginning: nothing is saved"),
        (failed(7, hung=True, code=1), "rank 1 on n2 hung at step 7"),
        (failed(0, hung=True, code=1, under_way=False), "rank 1 on n2 hung before its first step was done"),
        (failed(7, code=1, rank=None, host=""), "the run failed with exit code 1 at step 7"),
        (failed(7, code=-40), "was ended by signal 40"),
        (failed(0, host_lost=True, under_way=False), "lost with its machine before its first step was done"),
    ],
)
def test_what_happened_is_said(attempt: Attempt, words: str) -> None:
    decision = decide([attempt], restarts=3)
    assert isinstance(decision, Again) and words in decision.reason


def test_starts_without_a_new_checkpoint_are_counted_and_wait_longer() -> None:
    attempts = [failed(step, saved=(40, 40)) for step in (41, 45, 43)]
    for number in (1, 2, 3):
        decision = decide(attempts[:number], restarts=3)
        assert isinstance(decision, Again)
        assert (decision.number, decision.wait_seconds) == (number, WAITS[number - 1])
    decision = decide([*attempts, failed(44, saved=(40, 40))], restarts=3)
    assert isinstance(decision, Stop) and decision.code == 1
    assert "3 restarts without a new checkpoint" in decision.reason and "from step 40" in decision.reason


def test_a_new_checkpoint_refills() -> None:
    attempts = [failed(41, saved=(40, 40)), failed(45, saved=(40, 40)), failed(43, saved=(40, 40))]
    attempts.append(failed(55, saved=(40, 50)))
    decision = decide(attempts, restarts=3)
    assert isinstance(decision, Again) and decision.number == 1 and decision.wait_seconds == 0.0
    many = [failed(10 * n + 1, saved=(10 * n - 10, 10 * n)) for n in range(1, 200)]
    assert isinstance(decide(many, restarts=1), Again)


def test_three_failures_at_one_step_stop() -> None:
    first = failed(41, saved=(0, 40))
    again = failed(41, saved=(40, 40))
    assert isinstance(decide([first, again], restarts=9), Again)
    decision = decide([first, again, again], restarts=9)
    assert isinstance(decision, Stop) and "third time at this step" in decision.reason
    # What is known of the step may be coarse (train.log_every): who saves in between has moved on.
    moved_on = failed(41, saved=(40, 41))
    assert isinstance(decide([first, again, moved_on], restarts=9), Again)
    assert isinstance(decide([first, failed(42, saved=(40, 40)), again], restarts=9), Again)


def test_a_later_start_that_fails_before_its_first_step_counts_as_a_restart() -> None:
    """A file system may be away for a moment."""
    attempts = [failed(41, saved=(0, 40)), failed(40, saved=(40, 40), code=1, under_way=False)]
    decision = decide(attempts, restarts=3)
    assert isinstance(decision, Again) and decision.number == 2


def test_a_config_that_has_run_before_is_not_wrong() -> None:
    """A corpus may be away for a moment: only the first start says that the config is wrong."""
    decision = decide([failed(41, saved=(0, 40)), Attempt(2, 40, 40, 40, rank=0)], restarts=3)
    assert isinstance(decision, Again) and "failed with exit code 2 before its first step" in decision.reason


def test_a_request_to_stop_wins_over_any_failure() -> None:
    decision = decide([failed(41), failed(42, code=1, asked_to_stop=True)], restarts=3)
    assert isinstance(decision, Leave) and decision.code == 1
