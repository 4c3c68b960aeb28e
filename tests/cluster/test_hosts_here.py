"""Hosts of a test's own are what the other tests take them for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hosts import Host, hosts, why_not
from processes import until

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def test_a_host_has_its_own_name_address_and_processes(tmp_path: Path) -> None:
    with hosts(tmp_path, 2, debian=True) as (first, second):
        assert first.run("hostname").strip() == "h1"
        assert "10.99.0.2/24" in second.run("ip", "address")
        assert "127.0.1.1" in second.run("getent", "ahostsv4", "h2")
        assert "10.99.0.2" in first.run("getent", "ahostsv4", "h2")
        sleeper = first.start("sleep", "300")
        until(lambda: first.processes(), what="a process")
        assert first.processes() == [sleeper.program()] and not second.processes()
        first.shut()
        assert sleeper.end() == -9


def reaches(first: Host, address: str) -> bool:
    """Whether a message comes back from there within a second."""
    ping = "import socket,sys; s=socket.socket(); s.settimeout(1); s.connect((sys.argv[1], 7000))"
    return first.start("python", "-c", ping, address).end() == 0


def test_a_silent_or_unplugged_or_lost_host_is_out_of_reach_and_then_back(tmp_path: Path) -> None:
    serve = "import socket; s=socket.create_server(('', 7000))\nwhile True: s.accept()"
    with hosts(tmp_path, 2) as (first, second):
        second.start("python", "-c", serve)
        until(lambda: reaches(first, "h2"), what="an answer")
        second.silence()
        assert not reaches(first, "h2")
        second.hear()
        assert reaches(first, "h2")
        second.unplug()
        assert not reaches(first, "h2")
        second.plug()
        until(lambda: reaches(first, "h2"), what="an answer")
        second.lose()
        assert not reaches(first, "h2")
        second.boot()
        second.start("python", "-c", serve)
        until(lambda: reaches(first, "h2"), what="an answer")


def test_nothing_is_left_behind_though_the_test_is_killed(tmp_path: Path) -> None:
    script = "import time, sys; from pathlib import Path; from hosts import hosts\n"
    script += "with hosts(Path(sys.argv[1])) as (a, b):\n"
    script += "    a.start('sleep', '300')\n"
    script += "    while not a.processes(): time.sleep(0.05)\n"
    script += "    print(*a.processes(), a.pid, b.pid, flush=True); time.sleep(300)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    ) as test:
        assert test.stdout is not None
        pids = [int(word) for word in test.stdout.readline().split()]
        assert len(pids) == 3 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        test.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="the end of what it started")
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert "h1" not in links and "bridge" not in links
