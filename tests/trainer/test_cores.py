"""How many CPU threads a rank is given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cores
from launch.cores import Cores, Occupancy, choose


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
