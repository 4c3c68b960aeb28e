"""The doctor on one machine: each planted fault is found and has a remedy; a check that hangs is ended."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.doctor.apart import findings_of
from launch.doctor.check import Check, Circumstances
from launch.doctor.checks import interfaces, machine, names, software
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


def test_a_master_addr_of_no_use_on_other_nodes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "addresses", answers({"here": ["127.0.1.1"], "n1": ["10.0.0.7"]}))
    assert list(names.rank_0s("", NODE)) == []
    assert found(names.rank_0s("n1", NODE)) == found(names.rank_0s("here", ALONE)) == {}
    for name, why in (("here", "each node would look for rank 0 on itself"), ("gone", "has no address")):
        (finding,) = names.rank_0s(name, NODE)
        assert finding.level == Level.WARNING and f"MASTER_ADDR={name} " in finding.found
        assert why in finding.found


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


def test_worst_is_the_highest_level() -> None:
    assert worst([]) == Level.OK
    assert worst([ok("a.b", "c"), Finding("a.c", Level.NOTE, "d", "e")]) == Level.NOTE
