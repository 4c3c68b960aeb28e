"""The doctor on one machine: each planted fault is found and has a remedy; a check that hangs is ended."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.doctor.apart import findings_of
from launch.doctor.check import Check, Circumstances
from launch.doctor.checks import folder, folder_work, interfaces, machine, names, slurm, software
from launch.doctor.finding import Finding, Level, ok, worst
from trainer.process.cores import Cores

ALONE = Circumstances((), {})
NODE = Circumstances((), {}, host="n1")
UNLIMITED = resource.RLIM_INFINITY


def found(findings: Iterator[Finding]) -> dict[str, Level]:
    """Check → level, of what is not well."""
    return {finding.check: finding.level for finding in findings if finding.level > Level.OK}


def by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def check(run: Callable[[Circumstances], Iterator[Finding]], seconds: float = 10) -> Check:
    return Check("planted", run, seconds, Level.ERROR, "look at the server")


# What hangs or breaks inside a check.


def test_a_check_that_hangs_is_a_finding_and_what_came_before_is_kept() -> None:
    def hangs(at: Circumstances) -> Iterator[Finding]:
        yield ok("planted.first", "fine")
        time.sleep(60)

    began = time.monotonic()
    first, late = findings_of(check(hangs, 0.3), ALONE)
    assert time.monotonic() - began < 10
    assert (first.check, late.check, late.level) == ("planted.first", "planted.time", Level.ERROR)
    assert late.found == "no answer within 0.3 s after planted.first"
    assert late.remedy == "look at the server"


def test_programs_that_a_check_started_end_with_it(tmp_path: Path) -> None:
    def starts(at: Circumstances) -> Iterator[Finding]:
        yield ok("planted.first", "fine")
        os.system(f"sleep 1.5; touch {tmp_path / 'survived'}")

    assert [f.level for f in findings_of(check(starts, 0.3), ALONE)] == [Level.OK, Level.ERROR]
    time.sleep(1.8)
    assert not (tmp_path / "survived").exists()


def test_a_check_that_raises_says_where(capfd: pytest.CaptureFixture[str]) -> None:
    def raises(at: Circumstances) -> Iterator[Finding]:
        os.write(1, b"noise")
        yield ok("planted.first", "fine")
        raise KeyError("no such thing")

    first, failed = findings_of(check(raises), ALONE)
    assert first.level == Level.OK
    assert failed.level == Level.WARNING
    assert "KeyError: 'no such thing' (test_doctor_machine.py:" in failed.found
    assert capfd.readouterr().out == ""


# Packages.


def test_installed_packages_fit_and_a_planted_misfit_does_not() -> None:
    assert found(software.misfits(software.installed)) == {}

    def planted(name: str) -> str | None:
        return {"numpy": "1.20.0", "deepspeed": "0.15.0", "xxhash": None}.get(name, software.installed(name))

    misfits = by_check(software.misfits(planted))
    assert {name: finding.level for name, finding in misfits.items()} == {
        "software.numpy": Level.ERROR,
        "software.deepspeed": Level.WARNING,
        "software.xxhash": Level.ERROR,
    }
    assert misfits["software.xxhash"].remedy == "pip install 'xxhash>=3.5'"
    assert misfits["software.numpy"].found == "numpy is 1.20.0; germinal needs numpy>=1.26"


def test_an_extra_that_is_not_installed_is_no_finding() -> None:
    missing = {"deepspeed", "transformers", "ninja", "torchao", "ftfy", "rensa", "s3fs", "aiohttp"}
    findings = software.misfits(lambda name: None if name in missing else software.installed(name))
    assert not set(found(findings)) & {f"software.{name}" for name in missing - {"ninja", "aiohttp"}}


def test_torch_says_which_cuda_it_was_built_for(tmp_path: Path) -> None:
    for text, cuda in (
        ("cuda: Optional[str] = '12.8'\n", "12.8"),
        ("cuda: _Optional[str] = None\n", ""),
        ("cuda = '13.0'\n", "13.0"),
        ("nothing", None),
    ):
        (tmp_path / "version.py").write_text(f"debug = False\n{text}hip = None\n")
        assert software.torch_cuda(tmp_path) == cuda


# Cores, limits, memory, settings.


def test_few_open_files_and_processes_are_found() -> None:
    small = {resource.RLIMIT_NOFILE: (256, 1024), resource.RLIMIT_NPROC: (200, 200)}
    limits = machine.limits(lambda which: small.get(which, (0, 0)))
    assert found(limits) == {"machine.open_files": Level.WARNING, "machine.processes": Level.WARNING}
    usual = {resource.RLIMIT_NOFILE: (1024, 524288), resource.RLIMIT_NPROC: (63000, 63000)}
    assert found(machine.limits(lambda which: usual.get(which, (0, UNLIMITED)))) == {}


def test_a_real_small_limit_is_found_by_the_whole_check() -> None:
    """In the check's own process, whose limits nobody else has."""

    def limited(at: Circumstances) -> Iterator[Finding]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        yield from machine.limits(resource.getrlimit)

    assert found(findings_of(check(limited), ALONE)) == {"machine.open_files": Level.WARNING}


def test_threads_that_do_not_fit_the_cores_are_found() -> None:
    def levels(allowed: int, usable: int, **environ: str) -> dict[str, Level]:
        return found(machine.threads(environ, allowed=allowed, usable=Cores(usable, f"{usable} cores")))

    assert levels(8, 8) == {}
    assert levels(8, 8, OMP_NUM_THREADS="4", SLURM_TASKS_PER_NODE="2(x3)", SLURM_CPUS_PER_TASK="4") == {}
    assert levels(8, 8, OMP_NUM_THREADS="8", SLURM_TASKS_PER_NODE="2(x3)") == {
        "machine.threads": Level.WARNING
    }
    assert levels(1, 1, SLURM_CPUS_PER_TASK="8") == {"machine.cpus_per_task": Level.WARNING}
    assert levels(8, 2) == {"machine.quota": Level.NOTE}


def test_cores_that_others_keep_busy_are_found() -> None:
    assert found(machine.others(0.2, 2)) == {}
    assert found(machine.others(1.7, 64)) == {}
    assert found(machine.others(1.2, 2)) == {"machine.busy": Level.WARNING}


def test_settings_left_over_from_debugging_are_found() -> None:
    left = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_DISTRIBUTED_DEBUG": "detail", "NCCL_P2P_DISABLE": "0"}
    told = [finding.found for finding in machine.settings(left)]
    assert len(told) == 2
    assert told[0].startswith("CUDA_LAUNCH_BLOCKING=1: each GPU kernel is waited for")


def test_little_memory_is_found(tmp_path: Path) -> None:
    meminfo, cgroups = tmp_path / "meminfo", tmp_path / "cgroup"
    cgroups.mkdir()
    text = "MemTotal: 1000000 kB\nMemAvailable: {} kB\nSwapTotal: 10 kB\nSwapFree: 10 kB\n"
    meminfo.write_text(text.format(900_000))
    assert found(machine.memory(meminfo, cgroups)) == {}
    (cgroups / "memory.max").write_text("max\n")
    assert found(machine.memory(meminfo, cgroups)) == {}
    (cgroups / "memory.max").write_text("500000000\n")
    meminfo.write_text(text.format(50_000))
    expected = {"machine.memory_free": Level.WARNING, "machine.memory_limit": Level.NOTE}
    assert found(machine.memory(meminfo, cgroups)) == expected


def test_shared_memory_that_is_missing_or_small_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(machine.shared_memory(tmp_path / "none")) == {"machine.shared_memory": Level.WARNING}
    assert found(machine.shared_memory(tmp_path)) == {}
    monkeypatch.setattr(machine, "SHARED_MEMORY_BYTES", 1 << 60)
    (finding,) = machine.shared_memory(tmp_path)
    assert finding.level == Level.WARNING
    assert "--shm-size" in finding.remedy


# Names and interfaces.


def answers(table: dict[str, list[str]]) -> Callable[[str], list[str]]:
    def addresses(name: str) -> list[str]:
        if name not in table:
            raise OSError(-2, "Name or service not known")
        return table[name]

    return addresses


def test_the_own_name_at_127_0_1_1_matters_among_several_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        names, "addresses", answers({"here": ["127.0.1.1"], "good": ["127.0.1.1", "10.0.0.7"]})
    )
    assert found(names.own_name("here", ALONE)) == {}
    (finding,) = names.own_name("here", NODE)
    assert finding.level == Level.WARNING
    assert "127.0.1.1" in finding.found
    assert found(names.own_name("good", NODE)) == {}
    assert found(names.own_name("gone", ALONE)) == {"names.own": Level.NOTE}
    assert found(names.own_name("gone", NODE)) == {"names.own": Level.WARNING}


def test_a_localhost_that_is_not_loopback_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(names.localhost()) == {}
    monkeypatch.setattr(names, "addresses", answers({"localhost": ["10.0.0.7"]}))
    assert found(names.localhost()) == {"names.localhost": Level.ERROR}


def test_an_interface_that_is_not_there_is_found() -> None:
    there = {"lo", "eth0", "ib0"}
    assert found(interfaces.named_in({"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "ib"}, there)) == {}
    assert found(interfaces.named_in({"NCCL_SOCKET_IFNAME": "^docker"}, there)) == {}
    assert found(interfaces.named_in({"GLOO_SOCKET_IFNAME": "eth1"}, there)) == {
        "network.named": Level.WARNING
    }
    assert found(interfaces.named_in({"NCCL_SOCKET_IFNAME": "=ib"}, there)) == {
        "network.named": Level.WARNING
    }


def test_interfaces_of_a_node_are_judged() -> None:
    fast = interfaces.Interface("eth0", "10.0.0.1", 9000, 100_000)
    slow = interfaces.Interface("eth1", "192.168.0.1", 1500, 100)

    def levels(*there: interfaces.Interface, default: str = "eth0") -> dict[str, Level]:
        return found(interfaces.chosen(NODE, list(there), default=default))

    assert levels(fast) == {}
    assert levels() == {"network.interfaces": Level.WARNING}
    assert levels(fast, slow) == {"network.several": Level.NOTE}
    assert levels(slow, default="") == {"network.speed": Level.WARNING}
    assert found(interfaces.chosen(ALONE, [slow, fast], default="eth1")) == {}
    assert found(interfaces.chosen(ALONE, [], default="")) == {}


def test_infiniband_that_is_down_and_few_ports_are_found(tmp_path: Path) -> None:
    for port, state in (("1", "4: ACTIVE"), ("2", "1: DOWN")):
        at = tmp_path / "mlx5_0/ports" / port
        at.mkdir(parents=True)
        (at / "state").write_text(f"{state}\n")
        (at / "rate").write_text("400 Gb/sec (4X NDR)\n")
    levels = found(interfaces.infiniband(tmp_path))
    assert levels.pop("network.infiniband") == Level.NOTE
    assert set(levels) <= {"network.memlock"}  # of this machine
    (tmp_path / "range").write_text("32768\t33000\n")
    assert found(interfaces.ports(tmp_path / "range")) == {"network.ports": Level.WARNING}
    (tmp_path / "range").write_text("32768\t60999\n")
    assert found(interfaces.ports(tmp_path / "range")) == {}


# Folders.


def test_a_sound_folder_is_well_and_left_as_it_was(tmp_path: Path) -> None:
    levels = found(folder.check(ALONE, tmp_path / "runs" / "mine"))
    assert not {name for name, level in levels.items() if level == Level.ERROR}
    assert not {"folder.lock", "folder.append", "folder.rename", "folder.mapped", "folder.case"} & set(levels)
    assert list(tmp_path.iterdir()) == []


def test_kinds_of_file_systems_are_told(tmp_path: Path) -> None:
    def level(line: str) -> dict[str, Level]:
        file = tmp_path / "mountinfo"
        root = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        file.write_text(root + f"40 22 0:45 / {tmp_path} {line}\n")
        return found(folder.kind(tmp_path, folder.mounts(file)))

    assert level("rw,noatime shared:7 - xfs /dev/md0 rw") == {}
    assert level("rw - tmpfs tmpfs rw,size=1024k") == {"folder.kind": Level.WARNING}
    assert level("rw,relatime - overlay overlay rw,lowerdir=/a") == {"folder.kind": Level.WARNING}
    assert level("rw - nfs4 server:/home rw,vers=4.2,hard") == {}
    assert level("rw - nfs server:/home rw,vers=3,nolock") == {"folder.kind": Level.NOTE}
    assert [f.same for f in folder.kind(tmp_path, folder.mounts(tmp_path / "mountinfo"))] == [{}]


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


def test_worst_is_the_highest_level() -> None:
    assert worst([]) == Level.OK
    assert worst([ok("a.b", "c"), Finding("a.c", Level.NOTE, "d", "e")]) == Level.NOTE
