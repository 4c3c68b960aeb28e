"""How many CPU threads a rank is given."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.config import DataConfig
from parallel.world import runtime
from trainer.config.run_config import RunConfig
from trainer.models.decoder.config import DecoderConfig
from trainer.process import cores
from trainer.process.cores import Allotment, Cores, Occupancy, Threads, choose, share, sharers
from trainer.process.threads import settle
from trainer.ranks import Ranks


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def found(root: Path, groups: str) -> list[float]:
    (root / "of").write_text(groups)
    return sorted(cores.quotas(root, root / "of"))


def test_version_2_quotas_of_every_group_above(tmp_path: Path) -> None:
    write(tmp_path / "pod/job", cpu__max="150000 100000\n")
    write(tmp_path / "pod", cpu__max="400000 100000\n")
    write(tmp_path / "pod/other", cpu__max="1000 100000\n")
    assert found(tmp_path, "0::/pod/job\n") == [1.5, 4.0]
    write(tmp_path / "pod/job", cpu__max="max 100000\n")
    assert found(tmp_path, "0::/pod/job\n") == [4.0]


def test_version_1_quotas(tmp_path: Path) -> None:
    write(tmp_path / "cpu/slurm/job", cpu__cfs_quota_us="600000\n", cpu__cfs_period_us="200000\n")
    write(tmp_path / "cpu/slurm", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "memory/slurm/job", cpu__cfs_quota_us="1\n", cpu__cfs_period_us="1\n")
    groups = "5:memory:/slurm/job\n4:cpu,cpuacct:/slurm/job\n0::/\n"
    assert found(tmp_path, groups) == [3.0]


def test_a_containers_own_group_is_the_root_of_what_it_sees(tmp_path: Path) -> None:
    write(tmp_path, cpu__max="250000 100000\n")
    assert found(tmp_path, "0::/kubepods/pod1/abc\n") == [2.5]


class Busy(Occupancy):
    def __init__(self, cores: float) -> None:
        self.cores = cores

    def busy(self) -> float:
        return self.cores


@pytest.mark.parametrize(
    ("usable", "busy", "ranks", "threads"),
    [
        (Cores(8, "8 cores"), 0.0, 1, 8),
        (Cores(8, "8 cores"), 0.4, 2, 4),
        (Cores(8, "8 cores"), 5.6, 1, 2),
        (Cores(8, "8 cores"), 8.0, 2, 1),  # never none
        (Cores(3, "a cgroup's quota of 3.5 cores"), 4.0, 1, 3),  # others keep 4 of 8 busy: 3 are there
        (Cores(3, "a cgroup's quota of 3.5 cores"), 6.0, 1, 2),
    ],
)
def test_what_is_free_is_shared_out(
    monkeypatch: pytest.MonkeyPatch, usable: Cores, busy: float, ranks: int, threads: int
) -> None:
    monkeypatch.setattr(cores, "usable", lambda: usable)
    monkeypatch.setattr(cores, "allowed", lambda: set(range(8)))
    chosen = choose(ranks, asked=0, environ={}, folder=None, occupancy=Busy(busy))
    assert chosen.count == threads
    assert usable.why in chosen.why and (f"keeps {busy:.1f} busy" in chosen.why) == (busy >= 1)


def test_what_the_user_says_and_how_the_run_began_go_first(tmp_path: Path) -> None:
    """Another number of threads adds up in another order: the run would not be the same to the last bit."""
    starts = [{"ranks": 2, "threads": 3}, {"ranks": 4, "threads": 1}, {"ranks": 2, "threads": 5}]
    events = [{"kind": "start", **start} for start in starts] + [{"kind": "save", "ranks": 2}]
    lines = [json.dumps(event) for event in events] + ['{"kind": "start", "ranks": 2, "thr']
    (tmp_path / "events.jsonl").write_text("\n".join(lines))

    def chosen(ranks: int, asked: int = 0, **environ: str) -> tuple[int, str]:
        threads = choose(ranks, asked=asked, environ=environ, folder=tmp_path, occupancy=Busy(99))
        return threads.count, threads.why

    assert chosen(2) == (5, "as this run began; train.threads changes it")
    assert chosen(4)[0] == 1 and "as this run began" in chosen(4)[1]
    assert "busy" in chosen(3)[1]
    assert chosen(2, OMP_NUM_THREADS="7") == (0, "OMP_NUM_THREADS=7")
    assert chosen(2, asked=6, OMP_NUM_THREADS="7") == (6, "train.threads")


def test_ranks_that_were_told_nothing_share_the_cores_of_their_machine() -> None:
    def on(host: str, numbers: range, count: int = 0) -> Allotment:
        return Allotment(host, frozenset(numbers), Cores(count or len(numbers), "cores"))

    def threads(*everyones: Allotment) -> list[int]:
        return [share(*each).count for each in zip(everyones, sharers(everyones), strict=True)]

    all_8 = range(8)
    assert threads(on("a", all_8)) == [8]
    assert threads(on("a", all_8), on("a", all_8), on("b", all_8)) == [4, 4, 8]
    assert threads(on("a", range(4)), on("a", range(4, 8))) == [4, 4], "srun has divided them already"
    assert threads(*[on("a", all_8, count=3)] * 4) == [1] * 4, "a quota; never none"
    overlapping = on("a", range(4)), on("a", range(2, 8)), on("a", range(5, 8)), on("b", range(4))
    assert sharers(overlapping) == [2, 3, 2, 1]
    assert share(on("a", all_8), 2).why == "cores for 2 ranks"
    slurms = {at_most: share(on("a", all_8), 2, at_most=at_most) for at_most in (2, 4, 6)}
    assert {at_most: threads.count for at_most, threads in slurms.items()} == {2: 2, 4: 4, 6: 4}
    assert slurms[2].why == "SLURM_CPUS_PER_TASK=2", "SLURM does not confine the task to them"
    assert share(on("a", all_8), 2, begun=5) == Threads(5, "as this run began; train.threads changes it")


@pytest.mark.parametrize(
    ("environ", "begun", "said"),
    [
        ({}, 0, r"^{run}: \d+ threads? each \(.*\d+ cores?.*\)$"),
        ({}, 3, r"^{run}: 3 threads each \(as this run began; train.threads changes it\)$"),
        ({"OMP_NUM_THREADS": "1"}, 0, "^$"),
        (
            {"OMP_NUM_THREADS": "1"},
            3,
            r"^{run}: 1 thread each \(by the environment\), but 3 at the last start",
        ),
    ],
)
def test_a_rank_says_the_choice_that_no_launcher_has_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], environ: dict[str, str], begun: int, said: str
) -> None:
    if begun:
        event = {"kind": "start", "ranks": 1, "threads": begun}
        (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    cfg = RunConfig("t", DecoderConfig(), DataConfig(sources=[]), run_dir=str(tmp_path))
    before = torch.get_num_threads()
    try:
        settle(cfg, runtime.start(env={"GERMINAL_DEVICE": "cpu", **environ}), Ranks())
        chosen = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    shown = capfd.readouterr().err.strip()
    assert re.search(said.replace("{run}", str(tmp_path)), shown)
    assert chosen == (before if environ else begun or cores.usable().count)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/stat")
def test_other_processes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))  # as after a minute of it
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            assert Occupancy().busy() > 0.3
        finally:
            other.kill()
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert Occupancy().busy() <= 0.1  # a burst


def test_a_burst_at_the_start_takes_no_core_for_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the command before has just ended, on a machine that was busy a minute ago."""
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    monkeypatch.setattr(cores, "_own_seconds", lambda: 0.0)
    began = time.monotonic()
    monkeypatch.setattr(cores, "_busy_seconds", lambda: min(time.monotonic() - began, 0.3))
    assert Occupancy().busy() < 0.5
    monkeypatch.setattr(cores, "_busy_seconds", time.monotonic)
    assert Occupancy().busy() > 0.9  # work that stays
