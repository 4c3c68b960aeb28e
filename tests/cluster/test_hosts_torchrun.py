"""torchrun's elastic agents on two hosts: a rank, a host or the whole step is killed, and the run goes on."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from host_runs import (
    ENTRIES,
    assert_undisturbed,
    end_of_all,
    error_lines,
    faults,
    torchrun,
    undisturbed,
    until_step,
    write_run,
)
from hosts import Host, Process, hosts, why_not
from processes import burning, until
from whole_runs import consumed, events, newest, records

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]

# Else an agent that joins in a later round waits for an address that rank 0's agent told in the first round
# only (torch 2.13: DynamicRendezvousHandler.next_rendezvous).
NEWCOMERS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


# More steps than any test waits for.
LONG = ("train.steps=100000", "checkpoint.every=0")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("torchrun"))


def all_said(agents: list[Process]) -> str:
    return "\n".join(agent.said()[-4000:] for agent in agents)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in records(run / "metrics.jsonl") if "loss" in row]


def seconds_of_steps(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row["step_seconds"] for row in map(json.loads, lines) if "loss" in row]


def kill_rank(pair: list[Host], rank: int) -> None:
    """Kill a rank, on whichever host torchrun has put it."""

    def ranks() -> dict[int, int]:
        return {number: pid for host in pair for number, pid in host.ranks().items()}

    until(lambda: rank in ranks(), what=f"rank {rank}")
    os.kill(ranks()[rank], signal.SIGKILL)


@pytest.mark.parametrize(
    ("entry", "killed", "loaded"),
    [("module", 0, False), ("module", 0, True), ("command", 1, True)],
)
def test_the_agents_start_the_ranks_again_when_one_is_killed(
    config: Path, tmp_path: Path, entry: str, killed: int, loaded: bool
) -> None:
    run, expected = tmp_path / "run", undisturbed(config)
    with hosts(tmp_path) as pair, burning(6) if loaded else contextlib.nullcontext():
        agents = [torchrun(host, *ENTRIES[entry], config, f"run_dir={run}") for host in pair]
        for step in (15, 45) if loaded else (15,):
            until_step(run, step, *agents)
            kill_rank(pair, killed)
        codes, _ = end_of_all(agents, 180)
        assert codes == [0, 0], all_said(agents)
        assert not any(host.processes() for host in pair)
    assert len(events(run, "start")) == (3 if loaded else 2)
    assert_undisturbed(run, expected)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_host_that_is_lost_and_comes_back_joins_again(config: Path, tmp_path: Path, loaded: bool) -> None:
    run, expected = tmp_path / "run", undisturbed(config)
    command = (*ENTRIES["module"], config, f"run_dir={run}")
    with hosts(tmp_path) as pair, burning(6) if loaded else contextlib.nullcontext():
        agents = [torchrun(host, *command, env=NEWCOMERS) for host in pair]
        until_step(run, 15, *agents)
        pair[1].lose()
        pair[1].boot()
        agents[1] = torchrun(pair[1], *command, env=NEWCOMERS)
        codes, _ = end_of_all(agents, 240)
        assert codes == [0, 0], all_said(agents)
        assert not any(host.processes() for host in pair)
    assert_undisturbed(run, expected)


def test_one_host_goes_on_alone_where_the_agents_may_be_one_or_two(config: Path, tmp_path: Path) -> None:
    run, expected = tmp_path / "run", undisturbed(config)
    command = ("--rdzv-conf=last_call_timeout=3", *ENTRIES["module"], config, f"run_dir={run}")
    with hosts(tmp_path) as pair:
        agents = [torchrun(host, *command, nnodes="1:2") for host in pair]
        until_step(run, 15, *agents)
        pair[1].shut()
        assert agents[0].end(180) == 0, all_said(agents)
        assert not pair[0].processes()
    assert consumed(run) == consumed(expected)
    assert losses(run) == pytest.approx(losses(expected), rel=1e-4)  # one rank adds in another order


def test_a_signal_to_every_process_of_the_step_loses_no_state(config: Path, tmp_path: Path) -> None:
    """What `srun torchrun` gets by --signal=USR1 and at a time limit: the agents die of it at once, and their
    ranks end a step of some seconds and save.
    """
    run = tmp_path / "run"
    long = ("train.steps=100000", "checkpoint.every=0", "train.global_batch=8192", "train.micro_batch=1")
    command = (*ENTRIES["module"], config, f"run_dir={run}", *long)
    with hosts(tmp_path) as pair:
        agents = [torchrun(host, *command) for host in pair]
        until_step(run, 1, *agents)
        for host in pair:
            host.signal_all(signal.SIGUSR1)
        end_of_all(agents, 120)
        until(lambda: not any(host.processes() for host in pair), seconds=120, what="the end of the ranks")
        said = all_said(agents)
    assert "saved at step" in said, said
    assert newest(run).name == f"step-{records(run / 'metrics.jsonl')[-1]['step']:09d}"
    assert max(seconds_of_steps(run)) > 3.0, "the steps are too short to show anything"


def test_a_rank_and_later_its_host_are_killed_in_one_run(config: Path, tmp_path: Path) -> None:
    run, expected = tmp_path / "run", undisturbed(config)
    command = (*ENTRIES["module"], config, f"run_dir={run}")
    with hosts(tmp_path) as pair:
        agents = [torchrun(host, *command, env=NEWCOMERS) for host in pair]
        until_step(run, 15, *agents)
        kill_rank(pair, 1)
        until_step(run, 45, *agents)
        pair[1].lose()
        pair[1].boot()
        agents[1] = torchrun(pair[1], *command, env=NEWCOMERS)
        codes, _ = end_of_all(agents, 240)
        assert codes == [0, 0], all_said(agents)
        assert not any(host.processes() for host in pair)
    assert_undisturbed(run, expected)


def test_a_link_that_is_down_for_good_ends_both_agents_and_their_ranks(config: Path, tmp_path: Path) -> None:
    """The ranks end within a minute. Each agent then looks for the other: the first for `join_timeout`, the
    second until torch's own client gives up on the agents' store.
    """
    run = tmp_path / "run"
    command = ("--rdzv-conf=join_timeout=30", *ENTRIES["module"], config, f"run_dir={run}", *LONG)
    with hosts(tmp_path) as pair:
        for host in pair:  # else TCP tries for 15 minutes
            host.run("sysctl", "-w", "net.ipv4.tcp_retries2=6")
        agents = [torchrun(host, *command) for host in pair]
        until_step(run, 15, *agents)
        pair[1].unplug()
        until(lambda: not any(host.ranks() for host in pair), seconds=60, what="the end of the ranks")
        codes, _ = end_of_all(agents, 200)
        assert codes == [1, 1], all_said(agents)
        assert not any(host.processes() for host in pair)
    assert [(fault["rank"], fault["host"]) for fault in faults(run)] == [(1, "h2")]
    assert any("rank 1 on h2 is out of reach" in line for line in error_lines(agents[0])), all_said(agents)
