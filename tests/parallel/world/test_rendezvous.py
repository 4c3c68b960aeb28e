"""Where the ranks look for rank 0, from each launcher's variables."""

from pathlib import Path

import pytest

from parallel.world import slurm
from parallel.world.rendezvous import Place, missing, on_one_machine, place, shared

STEP = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "x1,n[1-2]",
}


def test_ranks_of_srun_meet_on_the_first_node_of_the_step() -> None:
    found = place(STEP, 4)
    assert found == Place("n1", slurm.ports("4711.3.0"), key="4711.3.0")
    assert place(STEP | {"MASTER_ADDR": "me", "MASTER_PORT": "7"}, 4) == Place("me", (7,), key="4711.3.0")
    assert place(STEP | {"MASTER_PORT": "7"}, 4).host == "n1"
    again = place(STEP | {"SLURM_RESTART_COUNT": "1", "SLURM_STEP_NUM_NODES": "1"}, 4)
    assert again.key == "4711.3.1" and again.ports != found.ports and again.one_machine


def test_neighbouring_jobs_and_steps_begin_with_other_ports() -> None:
    keys = [f"{job}.{step}.0" for job in range(4711, 4741) for step in range(8)]
    firsts = [slurm.ports(key)[0] for key in keys]
    assert len(set(firsts)) > 0.97 * len(keys), (
        "7 · job + step gave one port to job J step 7 and J + 1 step 0"
    )
    for key in keys:
        assert len(slurm.ports(key)) >= 10 and all(1024 < port < 32768 for port in slurm.ports(key))
    assert slurm.ports("4711.3.0") == slurm.ports("4711.3.0")


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("node", ["node"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("node[098-101]", ["node098", "node099", "node100", "node101"]),
        ("a-[1,3],b2", ["a-1", "a-3", "b2"]),
        ("gpu[07,12-13].cluster,n[1-2]", ["gpu07.cluster", "gpu12.cluster", "gpu13.cluster", "n1", "n2"]),
        ("rack[2-3]n[04-05]", ["rack2n04", "rack2n05", "rack3n04", "rack3n05"]),
        ("", []),
        ("n[1-3],m[1-", []),
        ("n[1-3],", []),
        ("n[a-c]", []),
        ("(null) n1", []),
    ],
)
def test_a_host_list(names: str, hosts: list[str]) -> None:
    assert slurm.expand(names) == hosts


@pytest.mark.parametrize(
    ("tasks", "distribution", "hosts"),
    [
        ("2(x2)", "block", ["n1", "n1", "n2", "n2"]),
        ("2(x2)", "cyclic", ["n1", "n2", "n1", "n2"]),
        ("3,1", "block:cyclic", ["n1", "n1", "n1", "n2"]),
        ("3,1", "cyclic,NoPack", ["n1", "n2", "n1", "n1"]),
        ("2(x2)", "plane=2", ["", "", "", ""]),
        ("4", "block", ["", "", "", ""]),
    ],
)
def test_the_host_of_a_rank(tasks: str, distribution: str, hosts: list[str]) -> None:
    env = STEP | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_DISTRIBUTION": distribution}
    assert [slurm.host_of(rank, env) for rank in range(4)] == hosts


@pytest.mark.parametrize(
    ("env", "alone"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, True),
        (STEP, False),
        (STEP | {"SLURM_STEP_NUM_NODES": "1"}, True),
        # torchrun inside a step of one task a node.
        (
            STEP | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "SLURM_STEP_NUM_NODES": "1"},
            False,
        ),
    ],
)
def test_whether_a_launcher_says_that_all_ranks_are_here(env: dict[str, str], alone: bool) -> None:
    assert on_one_machine(env, 2) is alone


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address(host: str) -> None:
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": host, "MASTER_PORT": "7"}
    assert place(env, 2) == Place("::1", (7,))


def test_two_ranks_on_one_gpu_are_named() -> None:
    assert shared({0: ("a", "G1"), 1: ("a", "G2"), 2: ("b", "G1")}) == ""
    assert shared({0: ("a", ""), 1: ("a", "")}) == "", "on a CPU"
    assert shared({0: ("a", "G1"), 1: ("b", "G1"), 2: ("a", "G1")}).startswith(
        "ranks 0 and 2 on a would compute on one GPU (G1): "
    )


def test_who_is_missing_is_named_with_the_machine_and_not_all_of_many() -> None:
    assert missing([3], {3: "n2"}, 4) == "rank 3 (n2) of 4"
    assert missing([1, 3], {1: "", 3: "n2"}, 4) == "ranks 1, 3 (n2) of 4"
    assert missing(list(range(1, 4000)), {}, 4000).endswith("7, 8 and 3991 more of 4000")


def test_slurms_controller_is_asked_for_a_nodes_address_until_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/calls\n[ -f {tmp_path}/up ] && echo NodeAddr=10.1.2.3\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert slurm.node_address("a-node-of-this-test") == ""
    (tmp_path / "up").touch()
    assert [slurm.node_address("a-node-of-this-test") for _ in range(3)] == ["10.1.2.3"] * 3
    assert (tmp_path / "calls").read_text() == "x\n" * 2
