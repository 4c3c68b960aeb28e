"""How ranks meet: threads of this process that connect as ranks do, but make no process group."""

import os
import re
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from parallel.world import addresses, runtime, slurm
from parallel.world.environment import use_interface
from parallel.world.meeting import begin, find
from parallel.world.presence import Presence
from parallel.world.rendezvous import Place


@pytest.fixture(autouse=True)
def no_group_of_an_earlier_test() -> None:
    """A group of one process, as FSDP needs it, stays until its process ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def torchruns(world: int, store: dist.TCPStore) -> dict[str, str]:
    return {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GERMINAL_DEVICE": "cpu",
    }


def joined(names: dict[str, str], ranks: Sequence[int] = ()) -> list[str]:
    """Start ranks as threads; return what each raised, or ""."""

    def join(rank: int) -> str:
        try:
            runtime.start(env={"RANK": str(rank), **names}, timeout=timedelta(seconds=60))
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(join, ranks or range(int(names["WORLD_SIZE"]))))


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each process group that would be made."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **group: made.append(group))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")  # so that it is put back
        monkeypatch.delenv(name)
    return made


@pytest.fixture
def agents() -> dist.TCPStore:
    """The store of a launcher."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def test_the_groups_store_is_rank_0s_own_and_holds_nothing_of_a_dead_start(
    groups: list[dict[str, Any]], agents: dist.TCPStore
) -> None:
    assert joined(torchruns(2, agents)) == ["", ""]
    dead = {group["rank"]: group["store"] for group in groups}
    dead[0].set("address", "of the dead")
    assert dead[1].get("address") == b"of the dead"
    assert agents.num_keys() <= 2, "nothing but rank 0's announcement is in the launcher's store"
    groups.clear()
    # Rank 1 reads what the dead rank 0 announced, before the living one has announced itself.
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(joined, torchruns(2, agents), [1])
        time.sleep(0.5)
        assert joined(torchruns(2, agents), [0]) == one.result() == [""]
    assert not groups[0]["store"].check(["address"])


def test_ranks_on_one_machine_meet_over_loopback_alone(
    groups: list[dict[str, Any]], agents: dist.TCPStore
) -> None:
    assert joined(torchruns(2, agents)) == ["", ""]
    assert os.environ["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=" + os.environ["GLOO_SOCKET_IFNAME"]
    connections = [entry for entry in psutil.Process().net_connections() if entry.status == "LISTEN"]
    # The agent's own store listens everywhere; it is not the ranks'.
    ours = [entry.laddr.ip for entry in connections if entry.laddr.port != agents.port]
    assert ours and set(ours) <= {"127.0.0.1", "::1"}, ours


def test_an_interface_that_the_user_chose_is_left(
    groups: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface("lo")
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ib0", "=lo")


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (("cuda", "cuda", "cpu"), "rank 2 computes on cpu, rank 0 on cuda: see nvidia-smi"),
        (("cpu", "cuda", "cuda"), "rank 1 computes on cuda, rank 0 on cpu: see nvidia-smi"),
    ],
)
def test_ranks_on_unlike_devices_are_told_before_they_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
    groups: list[dict[str, Any]],
    agents: dist.TCPStore,
    devices: tuple[str, ...],
    said: str,
) -> None:
    def device_of(environ: dict[str, str], local_rank: int) -> torch.device:
        return torch.device(devices[int(environ["RANK"])])

    monkeypatch.setattr(runtime, "device_of", device_of)
    monkeypatch.setattr(runtime, "gpu_id", lambda device: "")
    errors = joined(torchruns(3, agents))
    assert [error[: len(f"ValueError: {said}")] for error in errors] == [f"ValueError: {said}"] * 3
    assert groups == []


def test_ranks_of_another_number_are_told_on_every_rank(groups: list[dict[str, Any]]) -> None:
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GERMINAL_DEVICE": "cpu"}
    worlds = {0: "3", 1: "3", 2: "4"}
    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(lambda rank: joined(names | {"WORLD_SIZE": worlds[rank]}, [rank])[0], worlds))
    assert [text.partition(":")[0] for text in told] == ["ValueError"] * 3
    assert all("rank 2 was started as one of 4 ranks, rank 0 as one of 3" in text for text in told), told


def test_who_does_not_come_is_told_while_the_others_wait_and_when_they_give_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(begin, "SILENT_SECONDS", 0.1)
    zero = Presence(0, 4, lambda left: None)
    find.listen(zero, Place("127.0.0.1", (0,), one_machine=True), {"device": "cpu", "gpu": ""})
    names = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    who = r"ranks 1 \(n1\), 2 \(n2\), 3 \(n2\) of 4"
    with pytest.raises(RuntimeError, match=rf"^{who} did not come within 0\.3 s: was it started"):
        begin.gather(zero, patience_seconds=0.3, hosts=begin.hosts_of(names, by_srun=True))
    said = capfd.readouterr().err
    line = rf"waits for {who}, until \d\d:\d\d:\d\d \(parallel.timeout_seconds\)\n"
    assert len(re.findall(line, said)) == said.count("\n") == 1


def test_a_rank_says_which_rank_0_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(find, "SILENT_SECONDS", 0.1)
    port = free_port()
    names = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with pytest.raises(
        RuntimeError, match=rf"^rank 1 has not reached rank 0 at localhost within .*:{port}: "
    ):
        runtime.meet(env=names | {"GERMINAL_DEVICE": "cpu"}, timeout=timedelta(seconds=0.5))
    said = capfd.readouterr().err
    assert said.count("waits for rank 0 at localhost, until ") == 1 and f":{port}: Connection refused" in said


def test_a_port_in_use_is_an_error_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        names = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with pytest.raises(RuntimeError, match=rf"^MASTER_PORT: port {port} is in use on this machine: "):
            runtime.meet(env=names | {"GERMINAL_DEVICE": "cpu"})


def test_two_jobs_that_begin_with_the_same_port_do_not_meet_each_other(
    monkeypatch: pytest.MonkeyPatch, groups: list[dict[str, Any]]
) -> None:
    """Both on one node at once: the second takes the next port, and its ranks pass over the first's."""
    ports = (int(free_port()), int(free_port()))
    monkeypatch.setattr(slurm, "ports", lambda key: ports)
    names = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}

    def start(job: int, rank: int) -> runtime.Runtime:
        env = names | {"SLURM_JOB_ID": str(job), "SLURM_PROCID": str(rank), "GERMINAL_DEVICE": "cpu"}
        return runtime.start(env=env, timeout=timedelta(seconds=60))

    with ThreadPoolExecutor(4) as pool:
        zeros = [pool.submit(start, job, 0) for job in (7, 8)]
        time.sleep(0.3)
        ones = [pool.submit(start, job, 1) for job in (8, 7)]
        for started in zeros + ones:
            started.result(timeout=60)
    assert len(groups) == 4 and len({group["store"].port for group in groups}) == 2


def test_a_name_without_an_address_is_asked_for_elsewhere_and_then_an_error() -> None:
    assert addresses.resolve("nowhere.invalid", otherwise=lambda name: "127.0.0.1") == ("127.0.0.1",)
    with pytest.raises(
        RuntimeError, match=r"^nowhere\.invalid: this machine knows no address of it \(0\.1 s"
    ):
        addresses.resolve("nowhere.invalid", patience_seconds=0.1)


def test_addresses_of_other_machines_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian gives a machine's own name 127.0.1.1, which on another machine is that machine itself."""
    found = [(None, None, None, "", (address, 0)) for address in ("127.0.1.1", "10.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **more: found)
    assert addresses.resolve("n2") == ("10.0.0.2", "127.0.1.1")
