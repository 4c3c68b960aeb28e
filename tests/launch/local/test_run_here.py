"""A job on this machine: the command of each rank, where ranks meet, a module in this process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.job import Job, python
from launch.local import run
from launch.local.rank_commands import KEEP_MEMORY, rank_commands
from whole_runs import ASCII


def test_every_rank_is_told_who_it_is() -> None:
    job = Job("c.yaml", ("seed=1",), 4, threads=2)
    with socket.create_server(("127.0.0.1", 0)) as meet_at:
        ranks = rank_commands(job, environ={}, meet_at=meet_at)
        port, descriptor = meet_at.getsockname()[1], meet_at.fileno()
    assert [command.env["RANK"] for command in ranks] == ["0", "1", "2", "3"]
    assert all(
        command.argv == (sys.executable, "-P", "-m", "trainer", "c.yaml", "seed=1") for command in ranks
    )
    assert all(command.env["WORLD_SIZE"] == command.env["LOCAL_WORLD_SIZE"] == "4" for command in ranks)
    assert all(command.env["GERMINAL_INIT"] == f"tcp://127.0.0.1:{port}" for command in ranks)
    assert [command.descriptors for command in ranks] == [(descriptor,), (), (), ()]
    assert [command.env.get("GERMINAL_LISTENER") for command in ranks] == [str(descriptor), None, None, None]
    assert all(command.env["OMP_NUM_THREADS"] == "2" for command in ranks)


def test_threads_that_the_user_set_are_left_and_one_rank_gets_no_rendezvous() -> None:
    many = rank_commands(Job("c", (), 2, threads=4), environ={"OMP_NUM_THREADS": "3"})
    assert "OMP_NUM_THREADS" not in many[0].env
    (single,) = rank_commands(Job("c"), environ={"SLURM_NTASKS": "8"})
    who = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert single.env == who | KEEP_MEMORY


def test_one_rank_is_debugged_in_this_very_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "stands_for_debug.py").write_text(
        "import os\n"
        "def main(words):\n"
        "    print(os.getpid(), *words, os.environ['WORLD_SIZE'], os.environ['CUBLAS_WORKSPACE_CONFIG'])\n"
        "    return 75\n"
    )
    assert run.debug(Job("c.yaml", ("seed=1",), module="stands_for_debug", options=("--steps=2",))) == 75
    assert capfd.readouterr().out == f"{os.getpid()} --steps=2 c.yaml seed=1 1 :4096:8\n"


def test_another_clone_in_the_working_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('another clone')")
    done = subprocess.run(
        python("trainer", "--help"), cwd=tmp_path, env=ASCII, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: germinal rank CONFIG [key=value…]")
