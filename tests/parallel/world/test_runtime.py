"""Which rank a process is, from each launcher's variables."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import urlparse

import pytest
import torch
import torch.distributed as dist

from parallel.world import rendezvous, runtime
from parallel.world.device import device_of
from parallel.world.launcher import identity
from parallel.world.presence import Departure


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
    assert identity(env) == expected


def test_a_single_process_joins_nothing() -> None:
    found = runtime.start(env={})
    assert (found.rank, found.world, found.is_writer, found.stopping) == (0, 1, True, False)
    found.stop()
    found.stop()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 is outside WORLD_SIZE=4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK=x, WORLD_SIZE=4: not numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "x"}, "WORLD_SIZE=2, LOCAL_RANK=x: not numbers"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "needs MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "bar"}, "^MASTER_PORT=bar: "),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "65536"}, "^MASTER_PORT="),
        # Another launcher's ranks, inside a SLURM step; and a batch script's without srun, alone of two.
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n1"}, "MASTER_ADDR"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n1"}, "start with .*srun"),
    ],
)
def test_variables_that_contradict(env: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        runtime.start(env=env, timeout=timedelta(seconds=1))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node", "node"),
        ("node[003-005]", "node003"),
        ("a-[1,3],b2", "a-1"),
        ("n1,n2", "n1"),
        ("gpu[07,12-14].cluster,n[1-2]", "gpu07.cluster"),
        ("rack[2-3]n[04-05]", "rack2n04"),
    ],
)
def test_ranks_of_srun_meet_on_the_first_node(nodes: str, first: str) -> None:
    env = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "3"}
    env |= {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_NODELIST": f"x1,{nodes}"}

    def address(env: dict[str, str]) -> str:
        return rendezvous.address(env, 2, by_srun=True)

    assert address(env) == f"tcp://{first}:{10000 + (7 * 4711 + 3) % 20000}"
    assert address(env | {"MASTER_ADDR": "me", "MASTER_PORT": "7"}) == "tcp://me:7"
    assert address(env | {"MASTER_PORT": "7"}) == f"tcp://{first}:7"
    del env["SLURM_STEP_NODELIST"]
    assert address(env | {"SLURM_STEP_ID": "4"}) == "tcp://x1:22981"


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_makes_a_url(host: str) -> None:
    url = urlparse(rendezvous.address({"MASTER_ADDR": host, "MASTER_PORT": "7"}, 2, by_srun=False))
    assert (url.hostname, url.port) == ("::1", 7)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("cuda", "^GERMINAL_DEVICE=cuda: torch .* finds no CUDA device"), ("gpu", "=gpu: choose cpu or cuda")],
)
def test_a_device_that_is_not_there_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, wanted: str, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=words):
        runtime.start(env={"GERMINAL_DEVICE": wanted})


@pytest.mark.parametrize(
    ("device", "told", "found"),
    [
        ("cuda", {}, "expandable_segments:True"),
        ("cpu", {}, None),
        ("cuda", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ("cuda", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_every_run_on_a_gpu_has_segments_that_grow(
    monkeypatch: pytest.MonkeyPatch, device: str, told: dict[str, str], found: str | None
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert runtime.start(env={"GERMINAL_DEVICE": device}).device.type == device
    assert os.environ.get("PYTORCH_ALLOC_CONF") == found


def test_a_task_of_srun_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    srun = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    assert device_of(srun, 1) == torch.device("cuda", 0) and taken == [torch.device("cuda", 0)]
    with pytest.raises(ValueError, match="local rank 1 has no GPU: this machine has 1"):
        device_of(srun | {"RANK": "1", "WORLD_SIZE": "2"}, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(srun, 1) == torch.device("cuda", 1)


def test_ranks_see_nothing_of_what_a_dead_start_left_in_a_launchers_store() -> None:
    agents = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(agents.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def meet(rank: int) -> dist.Store:
        env = names | {"RANK": str(rank), "GERMINAL_DEVICE": "cpu"}
        return runtime.meet(env=env, timeout=timedelta(seconds=60))._group["store"]

    with ThreadPoolExecutor(2) as ranks:
        dead = list(ranks.map(meet, range(2)))
        dead[0].set("address", "of the dead")
        assert dead[1].get("address") == b"of the dead"
        # Rank 1 reads what the dead rank 0 announced, who has a rank 1 already.
        found = ranks.submit(lambda: meet(1).get("address"))
        ranks.submit(meet, 0).result().set("address", "of the living")
        assert found.result() == b"of the living"


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        (("cpu", "cpu", "cpu"), None),
        (("cuda", "cuda", "cpu"), "rank 2 computes on cpu, rank 0 on cuda: see nvidia-smi"),
        (("cpu", "cuda", "cuda"), "rank 1 computes on cuda, rank 0 on cpu: see nvidia-smi"),
    ],
)
def test_ranks_on_unlike_devices_are_told_before_they_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], said: str | None
) -> None:
    joined: list[int] = []
    monkeypatch.setattr(dist, "init_process_group", lambda **group: joined.append(group["rank"]))
    store = dist.HashStore()

    def join(rank: int) -> str | None:
        group = {"store": store, "rank": rank}
        try:
            runtime.Runtime(rank, 3, rank, torch.device(devices[rank]), _group=group).join()
        except ValueError as error:
            return str(error)[: len(said or "")]
        return None

    with ThreadPoolExecutor(3) as ranks:
        assert list(ranks.map(join, range(3))) == [said] * 3
    assert sorted(joined) == ([] if said else [0, 1, 2])


@pytest.mark.parametrize(
    ("there", "said"),
    [((0, 2), "rank 1 of 3 did not come in time: "), ((0,), "rank 1 of 3 and 1 more did not come in time: ")],
)
def test_who_did_not_come_is_told(there: tuple[int, ...], said: str) -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    for rank in there[1:]:
        store.set(f"device/{rank}", "cpu")
    with pytest.raises(RuntimeError, match=f"^{said}was it started, with the same MASTER_ADDR"):
        rendezvous.compare_devices(store, 0, 3, "cpu")


def test_of_a_rank_that_is_gone_without_a_word_rank_0_tells_and_of_rank_0_every_rank() -> None:
    def telling(left: Departure) -> list[int]:
        ranks = [runtime.Runtime(rank, 4, rank, torch.device("cpu")) for rank in range(4)]
        return [rank.rank for rank in ranks if rank.rank != left.rank and rank.should_report(left)]

    assert telling(Departure(2)) == [0]
    assert telling(Departure(0)) == [1, 2, 3]
    assert telling(Departure(2, 1)) == telling(Departure(0, 75, "asked to stop")) == [], "it has said why"
