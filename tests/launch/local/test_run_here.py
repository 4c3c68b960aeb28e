"""A job on this machine: the command of each rank, where ranks meet, a module in this process."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from launch.job import Job, python
from launch.local import run
from launch.local.rank_commands import KEEP_MEMORY, rank_commands
from launch.local.rendezvous_file import rendezvous_file
from whole_runs import ASCII


def test_every_rank_is_told_who_it_is() -> None:
    job = Job("c.yaml", ("seed=1",), 4, threads=2)
    ranks = rank_commands(job, rendezvous="file:///tmp/x", environ={})
    assert [command.env["RANK"] for command in ranks] == ["0", "1", "2", "3"]
    assert all(
        command.argv == (sys.executable, "-P", "-m", "trainer", "c.yaml", "seed=1") for command in ranks
    )
    assert all(command.env["WORLD_SIZE"] == command.env["LOCAL_WORLD_SIZE"] == "4" for command in ranks)
    assert all(command.env["GERMINAL_INIT"] == "file:///tmp/x" for command in ranks)
    assert all(command.env["OMP_NUM_THREADS"] == "2" for command in ranks)


def test_threads_that_the_user_set_are_left_and_one_rank_gets_no_rendezvous() -> None:
    many = rank_commands(Job("c", (), 2, threads=4), rendezvous="file:///x", environ={"OMP_NUM_THREADS": "3"})
    assert "OMP_NUM_THREADS" not in many[0].env
    (single,) = rank_commands(Job("c"), rendezvous="", environ={"SLURM_NTASKS": "8"})
    who = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert single.env == who | KEEP_MEMORY


@pytest.mark.parametrize(("platform", "left_by_a_kill"), [("linux", 0), ("darwin", 1)])
def test_the_ranks_meeting_place_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, left_by_a_kill: int
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with rendezvous_file() as place:
        # As a rank does: opened anew each time, in another process.
        write = f"open({place!r}, 'a').write('met')"
        subprocess.run([sys.executable, "-c", write], check=True, timeout=60)
        assert Path(place).read_text() == "met"
        assert len(list(tmp_path.iterdir())) == left_by_a_kill
    assert not Path(place).exists() and not list(tmp_path.iterdir())


def test_one_rank_is_debugged_in_this_very_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "debugged.py").write_text(
        "import os\n"
        "def main(words):\n"
        "    print(os.getpid(), *words, os.environ['WORLD_SIZE'], os.environ['CUBLAS_WORKSPACE_CONFIG'])\n"
        "    return 75\n"
    )
    assert run.debug(Job("c.yaml", ("seed=1",), module="debugged", options=("--steps=2",))) == 75
    assert capfd.readouterr().out == f"{os.getpid()} --steps=2 c.yaml seed=1 1 :4096:8\n"


def test_another_clone_in_the_working_directory_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('another clone')")
    done = subprocess.run(
        python("trainer", "--help"), cwd=tmp_path, env=ASCII, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m trainer CONFIG [key=value…]")
