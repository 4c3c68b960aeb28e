"""Who is behind, in three lines, and a file that stays small however many ranks there are."""

import json
import time

import pytest

from trainer.watch.report import document, find, grouped, ranges, who
from trainer.watch.whereabouts import Standing, Whereabouts


def standing(call: str, *, waits: bool, step: int = 57, track: str = "main", phase: str = "step") -> Standing:
    return Standing(track, phase, step, "", 132.4, 120.0, call, waits)


def at(rank: int, call: str, *, waits: bool, step: int = 57, host: str = "") -> Whereabouts:
    place = standing(call, waits=waits, step=step)
    return Whereabouts(rank, host or f"n{rank // 8}", (place,), (), "", f"{call} {waits} {step}")


REDUCE, GATHER = "sums.py:61 combine → distributed_c10d.py:3252 all_reduce", "loop.py:9 f → all_gather"
OVER = standing(REDUCE, waits=True)


def test_the_rank_that_waits_for_no_other_is_behind() -> None:
    found = [at(rank, REDUCE, waits=True) for rank in range(8) if rank != 5]
    finding = find(OVER, [*found, at(5, "hook.py:7 spin", waits=False)], {}, {})
    assert finding.ranks == (5,) and finding.hosts == ("n0",)
    first, second, third = finding.lines
    told = "hang: step 57 has lasted 132 s, and may last 120 s: "
    assert first == f"{told}rank 5 on n0 is in hook.py:7 spin"
    assert second == f"ranks 0-4, 6-7 on n0 are in {REDUCE} and wait for other ranks"
    assert "{file}" in third


def test_a_rank_that_does_not_answer_is_behind_whatever_the_others_do() -> None:
    found = [at(0, REDUCE, waits=True), at(2, "hook.py:7 spin", waits=False)]
    finding = find(OVER, found, {1: "it is stopped by a signal (SIGSTOP?)"}, {1: "n9"})
    assert finding.ranks == (1,) and finding.hosts == ("n9",)
    assert finding.lines[0].endswith("rank 1 on n9 does not answer: it is stopped by a signal (SIGSTOP?)")
    unknown = find(OVER, found, {1: "", 3: ""}, {1: "n9", 3: "n9"})
    assert unknown.lines[0].endswith("ranks 1, 3 on n9 do not answer: stopped, or its machine or link lost?")


def test_of_ranks_that_all_wait_those_at_the_lowest_step_are_behind_else_those_in_the_rarest_call() -> None:
    steps = [at(0, REDUCE, waits=True), at(1, REDUCE, waits=True, step=56), at(2, REDUCE, waits=True)]
    assert find(OVER, steps, {}, {}).ranks == (1,)
    calls = [at(rank, GATHER if rank == 2 else REDUCE, waits=True) for rank in range(4)]
    assert find(OVER, calls, {}, {}).ranks == (2,)
    two = find(OVER, calls[1:3], {}, {})
    assert two.ranks == (1, 2), "neither is more wrong than the other"
    assert REDUCE in two.lines[0] and GATHER in two.lines[1]


def test_a_call_that_all_ranks_wait_in_blames_the_links() -> None:
    finding = find(OVER, [at(rank, REDUCE, waits=True) for rank in range(4)], {}, {})
    assert finding.ranks == () and "all ranks wait in the same call" in finding.lines[0]


def test_a_single_process_is_told_with_its_call() -> None:
    finding = find(standing("hook.py:7 spin", waits=False), [at(0, "hook.py:7 spin", waits=False)], {}, {})
    assert finding.ranks == (0,) and finding.lines[0].endswith("rank 0 on n0 is in hook.py:7 spin")


def test_of_a_hanging_save_the_saving_threads_are_compared() -> None:
    def saving(rank: int, call: str, waits: bool) -> Whereabouts:
        save = standing(call, waits=waits, step=40, track="save", phase="save")
        # Training goes on meanwhile, and the main threads are anywhere.
        return Whereabouts(rank, "n0", (standing("loop.py:1 x", waits=rank == 1), save), (), "", f"{rank}")

    over = standing("attempt.py:9 _poll", waits=True, step=40, track="save", phase="save")
    finding = find(over, [saving(0, "attempt.py:9 _poll", True), saving(1, "store.py:5 open", False)], {}, {})
    assert finding.ranks == (1,)
    assert "the save after step 40 has lasted" in finding.lines[0] and "store.py:5 open" in finding.lines[0]


@pytest.mark.parametrize("places", [1, 4095])
def test_thousands_of_ranks_are_a_small_file_at_once(places: int) -> None:
    """4,096 answers as they travel; all but one at the same place, or every rank at a place of its own."""
    text = "thread MainThread\n" + "  trainer/loop.py:87 train\n" * 200
    answers = [
        json.dumps(at(rank, f"{REDUCE} {rank % places}", waits=True).to_json()) for rank in range(4095)
    ]
    answers.append(json.dumps(at(4095, "hook.py:7 spin", waits=False).to_json()))
    assert sum(map(len, answers)) < 4096 * 600, "what rank 0 receives"
    began = time.monotonic()
    found = [Whereabouts.from_json(json.loads(answer)) for answer in answers]
    finding = find(OVER, found, {}, {})
    stacks = {group.ranks[0]: text for group in grouped(found, finding.ranks)[:64]}
    written = document(finding, found, {}, stacks, heading="run")
    assert time.monotonic() - began < 5.0
    assert finding.ranks == (4095,) and all(len(line) < 1000 for line in finding.lines)
    assert len(written) < (20_000 if places == 1 else 600_000)
    assert "rank 4095 on n511" in written and "stacks of rank 4095" in written


def test_numbers_and_hosts_in_few_words() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges(range(0, 100, 2), most=3) == "0, 2, 4, and 47 more"
    assert who([3], ["n2"]) == "rank 3 on n2"
    assert who([0, 1], [f"n{i}" for i in range(6)]) == "ranks 0-1 on n0, n1, n2, n3 and 2 more hosts"
