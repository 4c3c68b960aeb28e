"""The doctor on folders and on SLURM's settings: each planted fault is found, and a sound folder is well."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.hosts.mounts import Mount
from launch.doctor.check import Circumstances
from launch.doctor.checks import folder, folder_work, slurm
from launch.doctor.finding import Finding, Level

ALONE = Circumstances((), {})


def found(findings: Iterator[Finding]) -> dict[str, Level]:
    """Check → level, of what is not well."""
    return {finding.check: finding.level for finding in findings if finding.level > Level.OK}


def by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


# Folders.


def test_a_sound_folder_is_well_and_left_as_it_was(tmp_path: Path) -> None:
    levels = found(folder.check(ALONE, tmp_path / "runs" / "mine"))
    assert not {name for name, level in levels.items() if level == Level.ERROR}
    assert not {"folder.lock", "folder.append", "folder.rename", "folder.mapped", "folder.case"} & set(levels)
    assert list(tmp_path.iterdir()) == []


def test_kinds_of_file_systems_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def level(kind: str, options: str) -> dict[str, Level]:
        mount = Mount(tmp_path, kind, tuple(options.split(",")))
        monkeypatch.setattr(folder, "mount_of", {tmp_path: mount}.get)
        return found(folder.kind(tmp_path))

    assert level("xfs", "rw,noatime") == {}
    assert [f.same for f in folder.kind(tmp_path)] == [{"file system": "xfs"}]
    assert level("tmpfs", "rw,size=1024k") == {"folder.kind": Level.WARNING}
    assert level("overlay", "rw,lowerdir=/a") == {"folder.kind": Level.WARNING}
    assert level("nfs4", "rw,vers=4.2,hard") == {}
    assert level("nfs", "rw,vers=3,nolock") == {"folder.kind": Level.NOTE}
    assert level("lustre", "rw,flock") == {}
    assert level("lustre", "rw,localflock") == {"folder.kind": Level.NOTE}
    assert [f.same for f in folder.kind(tmp_path)] == [{}]
    assert list(folder.kind(tmp_path / "elsewhere")) == []  # the system does not tell


def test_a_full_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)

    def statvfs(path: Path, free_bytes: int, free_files: int) -> os.statvfs_result:
        blocks = free_bytes // real.f_frsize
        return os.statvfs_result(
            (*real[:3], blocks, blocks, real.f_files or 9**9, free_files, free_files, *real[8:])
        )

    for free_bytes, free_files, expected in (
        (100 << 20, 1 << 20, {"folder.room": Level.ERROR}),
        (5 << 30, 1 << 20, {"folder.room": Level.WARNING}),
        (50 << 30, 1 << 20, {}),
        (50 << 30, 500, {"folder.files": Level.WARNING}),
        (50 << 30, 3, {"folder.files": Level.ERROR}),
    ):
        monkeypatch.setattr(os, "statvfs", lambda path, a=free_bytes, b=free_files: statvfs(path, a, b))
        assert found(folder.room(tmp_path)) == expected


def test_a_write_that_finds_no_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_work, "write_durably", full)
    assert by_check(folder.check(ALONE, tmp_path))["folder.writable"].level == Level.ERROR
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**options: object) -> str:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    finding = by_check(folder.check(ALONE, tmp_path))["folder.writable"]
    assert finding.level == Level.ERROR
    assert finding.found == f"{tmp_path} cannot be written: Read-only file system"


def test_a_slow_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.12)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(folder_work, "PIECE_BYTES", 1 << 20)
    assert found(folder_work.latency(tmp_path, tmp_path)) == {"folder.fsync": Level.WARNING}
    assert found(folder_work.throughput(tmp_path, tmp_path)) == {"folder.write": Level.WARNING}


def test_locks_that_do_not_hold_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(folder_work.locks(tmp_path, tmp_path)) == {}
    monkeypatch.setattr(
        "fcntl.flock", lambda descriptor, how: None
    )  # as Lustre with localflock, between nodes
    assert found(folder_work.locks(tmp_path, tmp_path)) == {"folder.lock": Level.WARNING}

    def none(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    assert found(folder_work.locks(tmp_path, tmp_path)) == {"folder.lock": Level.WARNING}


def test_appends_that_are_lost_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_APPEND without its meaning, as on NFS: each process writes where it believes that the end is."""
    assert found(folder_work.appends(tmp_path, tmp_path)) == {}
    (tmp_path / "appended").unlink()
    open_file = os.open
    monkeypatch.setattr(
        os, "open", lambda path, flags, mode=0o666: open_file(path, flags & ~os.O_APPEND, mode)
    )
    assert found(folder_work.appends(tmp_path, tmp_path)) == {"folder.append": Level.WARNING}


def test_renames_that_are_not_atomic_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(source: Path, target: Path) -> None:
        Path(target).unlink()
        time.sleep(0.001)
        os.rename(source, target)

    assert found(folder_work.renames(tmp_path, tmp_path)) == {}
    monkeypatch.setattr(os, "replace", torn)
    assert found(folder_work.renames(tmp_path, tmp_path)) == {"folder.rename": Level.WARNING}


def test_maps_that_are_refused_and_names_without_case_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(folder_work.mapped(tmp_path, tmp_path)) == {}
    assert found(folder_work.cases(tmp_path, tmp_path)) == {}
    (tmp_path / "CASE").touch()
    assert found(folder_work.cases(tmp_path, tmp_path)) == {"folder.case": Level.WARNING}

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", refused)
    assert found(folder_work.mapped(tmp_path, tmp_path)) == {"folder.mapped": Level.WARNING}


# SLURM's settings.

SETTINGS = """Configuration data as of 2026-11-22T08:00:00
JobRequeue              = {requeue}
KillWait                = 30 sec
PreemptMode             = {preempt}
ProctrackType           = {track}
SLURM_VERSION           = 22.05.8
"""


def test_slurms_settings_are_judged(tmp_path: Path) -> None:
    plain = slurm.read(SETTINGS.format(requeue=1, preempt="OFF", track="proctrack/cgroup"))
    assert plain["KillWait"] == "30 sec"
    assert found(slurm.preemption(plain)) == found(slurm.processes(plain)) == {}
    other = slurm.read(SETTINGS.format(requeue=0, preempt="GANG,SUSPEND", track="proctrack/pgid"))
    assert found(slurm.preemption(other)) == {"slurm.preempt": Level.NOTE, "slurm.requeue": Level.NOTE}
    assert found(slurm.processes(other)) == {"slurm.processes": Level.NOTE}


def test_kill_wait_is_compared_with_the_saves_of_a_run(tmp_path: Path) -> None:
    settings = slurm.read(SETTINGS)
    events = tmp_path / "events.jsonl"
    assert slurm.longest_save(tmp_path) == 0
    assert found(slurm.time_to_save(settings, 0)) == {"slurm.kill_wait": Level.NOTE}
    events.write_text('{"kind": "save", "seconds": 2.5}\n{"kind": "start"}\n{"kind": "save", "sec')
    assert found(slurm.time_to_save(settings, slurm.longest_save(tmp_path))) == {}
    events.write_text('{"kind": "save", "seconds": 25.0}\n')
    levels = found(slurm.time_to_save(settings, slurm.longest_save(tmp_path)))
    assert levels == {"slurm.kill_wait": Level.WARNING}


@pytest.mark.parametrize(
    ("text", "value"), [("30 sec", 30), ("00:01:30", 90), ("1-00:00:00", 86400), ("", float("inf"))]
)
def test_slurms_times_are_read(text: str, value: float) -> None:
    assert slurm.seconds(text) == value
