"""Processes that hold a folder by a lease: stopped, killed, and beside locks that hold or are not there."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.hosts import mounts
from common.hosts.lease import Lease
from common.hosts.lease_file import holder
from common.lock import FolderLock
from data.prepare.command_record import hold_folder

HOLD = """
import sys, time
from pathlib import Path
from common import lock
from common.hosts import lease, mounts
from trainer.folder.fence import Fence
mounts.MOUNTS = Path(sys.argv[2])
lease.LEASE_SECONDS = lock.LEASE_SECONDS = float(sys.argv[3])
take = lease.Lease.take
lease.Lease.take = lambda folder, **named: take(folder, **named, seconds=lease.LEASE_SECONDS)
run = Path(sys.argv[1])
if len(sys.argv) > 4:  # as another kernel
    from common.hosts import lease_file
    lease.this_process = lambda: lease_file.Owner(sys.argv[4], 7, sys.argv[4], 1)
try:
    held = lock.FolderLock.take(run, patience_seconds=0.0)
except OSError as error:
    sys.exit(str(error))
fence = Fence(run)
fence.take(held.check)
print("held", held.lease and held.lease.epoch, held.why, flush=True)
for line in sys.stdin:
    try:
        fence.check()
        (run / "written").write_text(line)
        print("wrote", flush=True)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
"""


class Holder:
    """A process that holds `folder`, and writes a file there at every line that it is sent."""

    def __init__(self, folder: Path, *, seconds: float = 1.0, host: str = "", mountinfo: Path) -> None:
        words = [
            sys.executable,
            "-S",
            "-c",
            HOLD,
            str(folder),
            str(mountinfo),
            str(seconds),
            *filter(None, [host]),
        ]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("x\n")

    def end(self) -> str:
        return self.process.communicate(timeout=60)[1]


@pytest.fixture
def local_locks(tmp_path: Path) -> Path:
    """The mounts of a host that has the test's folder from Lustre, with locks of its own."""
    file = tmp_path / "mountinfo"
    file.write_text(f"65 22 0:55 / {tmp_path} rw - lustre 10.0.0.1@o2ib:/scratch rw,localflock\n")
    return file


def test_the_same_host_needs_no_waiting_after_a_kill(tmp_path: Path, local_locks: Path) -> None:
    (run := tmp_path / "run").mkdir()
    first = Holder(run, mountinfo=local_locks, seconds=600)
    why = f"locks of lustre, as it is mounted at {tmp_path}, hold on one host only"
    assert first.line() == f"held 1 {run}: {why}; held by lease 1\n"
    assert f"{run} is in use by process {first.process.pid} on" in Holder(run, mountinfo=local_locks).end()
    first.process.kill()
    first.process.wait()
    second = Holder(run, mountinfo=local_locks, seconds=600)
    assert second.line().startswith("held 2 ")
    second.process.kill()
    second.process.communicate()


def test_a_holder_that_was_stopped_beyond_its_lease_writes_nothing_and_says_so(
    tmp_path: Path, local_locks: Path
) -> None:
    """Stopped as a machine that is cut off; the other host has no flock in common with it."""
    (run := tmp_path / "run").mkdir()
    first = Holder(run, mountinfo=local_locks, host="n1")
    assert first.line().startswith("held 1 ")
    first.write()
    assert first.line() == "wrote\n"
    (run / "written").unlink()
    first.process.send_signal(signal.SIGSTOP)
    (run / ".lock").unlink()  # the other host's kernel knows nothing of this one's lock
    second = Holder(run, mountinfo=local_locks, host="n2")
    assert second.line().startswith("held 2 ")
    first.write()
    first.process.send_signal(signal.SIGCONT)
    said = first.end()
    assert said.startswith(f"error: {run} was taken over by ") and said.count("\n") == 1, said
    assert not (run / "written").exists()
    second.write()
    assert second.line() == "wrote\n"
    said = second.end()
    assert re.fullmatch(
        rf"process 7 on n1 gave no sign of life in \d+ s of waiting, and has lost {run}\n", said
    )


@pytest.mark.parametrize("mounted", ["ext4 /dev/vda1 rw", "nfs4 server:/home rw,vers=4.2,local_lock=none"])
def test_no_lease_where_locks_hold(mounted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(f"65 22 0:55 / {tmp_path} rw - {mounted}\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    (run := tmp_path / "run").mkdir()
    held = FolderLock.take(run)
    held.check()
    assert held.lease is None and held.why == "" and os.listdir(run) == [".lock"]
    held.release()


def test_a_lease_takes_the_place_of_locks_that_there_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    held = FolderLock.take(tmp_path)
    assert held.lease is not None and "the file system has no locks (No locks available)" in held.why
    with pytest.raises(BlockingIOError, match=rf"{tmp_path} is in use by process {os.getpid()} on"):
        FolderLock.take(tmp_path, patience_seconds=0.0)
    assert holder(tmp_path).startswith(f"process {os.getpid()} on")
    held.release()
    FolderLock.take(tmp_path).release()


@pytest.mark.parametrize(("options", "seconds"), [("rw,local_lock=all", 30), ("rw,nocto,local_lock=all", 90)])
def test_caches_are_waited_for(
    options: str, seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(f"65 22 0:55 / {tmp_path} rw - nfs server:/home {options}\n")
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "mountinfo")
    asked: list[float] = []
    take_lease = Lease.take

    def noted(folder: Path, *, silence_seconds: float, **rest: float) -> Lease:
        asked.append(silence_seconds)
        return take_lease(folder, silence_seconds=silence_seconds, **rest)

    monkeypatch.setattr(Lease, "take", noted)
    FolderLock.take(tmp_path).release()
    assert asked == [seconds]


def test_two_prepares_of_one_folder_on_two_hosts(
    tmp_path: Path, local_locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other host's kernel has locks of its own: here they are those of a file that it does not have."""
    monkeypatch.setattr(mounts, "MOUNTS", local_locks)
    out, scratch = tmp_path / "corpus", tmp_path / "corpus/.prepare"
    with hold_folder(out, scratch):
        (scratch / ".lock").unlink()
        with (
            pytest.raises(RuntimeError, match=f"another prepare is at work in {out}"),
            hold_folder(out, scratch),
        ):
            pass
    assert not out.exists()
