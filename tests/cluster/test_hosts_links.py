"""Ranks on several hosts, started by nothing but their variables: links, names and ranks fail."""

import os
import signal
import time
from pathlib import Path

import pytest

from host_runs import (
    assert_undisturbed,
    by_hand,
    end_of_all,
    error_lines,
    faults,
    undisturbed,
    until_step,
    write_run,
)
from hosts import hosts, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]
LONG = ("train.steps=100000", "checkpoint.every=20")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("links"))


def test_five_seconds_without_a_link_do_no_harm(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hosts(tmp_path) as pair:
        ranks = by_hand(pair, config, f"run_dir={run}")
        until_step(run, 15, *ranks)
        pair[1].silence()
        time.sleep(5.0)
        pair[1].hear()
        codes, _ = end_of_all(ranks, 120.0)
        assert codes == [0, 0], [rank.said()[-4000:] for rank in ranks]
    assert_undisturbed(run, undisturbed(config))


def test_a_link_that_is_down_for_good_is_told_within_a_minute(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hosts(tmp_path) as pair:
        ranks = by_hand(pair, config, f"run_dir={run}", *LONG)
        until_step(run, 15, *ranks)
        pair[1].unplug()
        codes, seconds = end_of_all(ranks, 60.0)
        assert not any(host.processes() for host in pair)
    assert codes == [1, 1] and seconds < 60.0
    for rank, (other, name) in zip(ranks, ((1, "h2"), (0, "h1"))):  # neither hears of the other
        told = error_lines(rank)
        assert len(told) == 1 and f"rank {other}" in told[0] and name in told[0], rank.said()
    assert [(fault["rank"], fault["host"]) for fault in faults(run)] == [(1, "h2")]


@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_rank_of_another_host_is_one_line_within_ten_seconds(
    config: Path, tmp_path: Path, killed: int
) -> None:
    run = tmp_path / "run"
    with hosts(tmp_path, 3) as three:
        ranks = by_hand(three, config, f"run_dir={run}", *LONG, "train.global_batch=12")
        until_step(run, 15, *ranks)
        os.kill(ranks[killed].program(), signal.SIGKILL)
        survivors = [rank for number, rank in enumerate(ranks) if number != killed]
        codes, seconds = end_of_all(survivors, 30.0)
    told = error_lines(*survivors)
    assert codes == [1, 1], [rank.said()[-4000:] for rank in ranks]
    assert len(told) == (2 if killed == 0 else 1), told  # of rank 0's end, each other rank
    assert all(f"rank {killed}" in line and f"h{killed + 1}" in line for line in told), told
    assert "Traceback" not in "".join(rank.said() for rank in ranks)
    assert seconds < 10.0
    assert [(fault["rank"], fault["host"]) for fault in faults(run)] == [(killed, f"h{killed + 1}")]


def test_hosts_whose_own_name_is_127_0_1_1_meet(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hosts(tmp_path, 2, debian=True) as pair:
        ranks = by_hand(pair, config, f"run_dir={run}")
        codes, _ = end_of_all(ranks, 120.0)
        assert codes == [0, 0], [rank.said()[-4000:] for rank in ranks]
    assert_undisturbed(run, undisturbed(config))


def test_a_name_that_does_not_resolve_is_one_line_within_a_minute(config: Path, tmp_path: Path) -> None:
    with hosts(tmp_path) as pair:
        ranks = by_hand(pair, config, f"run_dir={tmp_path / 'run'}", master="no-such-host")
        codes, seconds = end_of_all(ranks, 90.0)
    assert codes == [1, 1] and seconds < 60.0
    for rank in ranks:
        told = error_lines(rank)
        assert len(told) == 1 and "no-such-host" in told[0], rank.said()
    assert "Traceback" not in "".join(rank.said() for rank in ranks)


def test_a_rank_that_was_not_started_is_named_within_a_minute(config: Path, tmp_path: Path) -> None:
    with hosts(tmp_path, 3) as three:
        first, second, third = by_hand(three, config, f"run_dir={tmp_path / 'run'}", "train.global_batch=12")
        three[2].shut()
        by = time.monotonic() + 60.0
        while "rank 2" not in first.said():
            assert time.monotonic() < by and first.poll() is None, first.said()
            time.sleep(0.2)
        assert third.end() and second.poll() is None
