"""A folder held by a lease: hosts are played by owners of other names, processes of kernels elsewhere."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.hosts import lease, mounts
from common.hosts.lease import Lease
from common.hosts.lease_file import Owner, holder
from common.lock import FolderLock

SECONDS = 0.6
A, B, C = (Owner(f"n{number}", 7, f"kernel {number}", 5) for number in (1, 2, 3))


def take(folder: Path, owner: Owner, patience_seconds: float = 0.0) -> Lease:
    return Lease.take(
        folder, patience_seconds=patience_seconds, owner=owner, seconds=SECONDS, silence_seconds=SECONDS
    )


def freeze(held: Lease) -> None:
    """Stand still as a stopped process does: no renewal from now on."""
    held._over.set()


def wake(held: Lease) -> None:
    held._over.clear()


def files(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(".lease-"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder; renewals end with the test."""
    yield tmp_path
    for name in files(tmp_path):
        (tmp_path / name).unlink()  # then the thread of its holder ends


def test_a_holder_on_another_host_is_seen_alive_and_named(run: Path) -> None:
    first = take(run, A)
    with pytest.raises(BlockingIOError, match=r"^process 7 on n1$"):
        take(run, B)
    first.check()
    assert files(run) == [".lease-1"] and first.told == ""


def test_a_freed_lease_is_had_at_once_and_its_number_grows(run: Path) -> None:
    for owner, number in ((A, 1), (B, 2), (A, 3)):
        held = take(run, owner)
        assert (held.epoch, held.told, files(run)) == (number, "", [f".lease-{number}"])
        held.release()
    assert holder(run) == ""


def test_a_silent_holder_loses_the_folder_and_is_told_so_before_it_writes(run: Path) -> None:
    first = take(run, A)
    freeze(first)
    second = take(run, B)
    assert (second.epoch, files(run)) == (2, [".lease-2"])
    assert re.fullmatch(
        rf"process 7 on n1 gave no sign of life in \d+ s of waiting, and has lost {run}", second.told
    )
    wake(first)
    before = (run / ".lease-2").read_bytes()
    with pytest.raises(
        RuntimeError, match=rf"^{run} was taken over by process 7 on n2 \(lease 2\): .*lease 1"
    ):
        first.check()
    first.release()
    assert files(run) == [".lease-2"]
    assert json.loads(before)["token"] == json.loads((run / ".lease-2").read_bytes())["token"]
    second.check()


def test_a_successor_that_died_before_it_cleared_up_is_seen_too(run: Path) -> None:
    first = take(run, A)
    freeze(first)
    (run / ".lease-2").touch()  # created, and not yet written
    wake(first)
    first._renewed -= 2 * SECONDS
    with pytest.raises(RuntimeError, match="taken over by another process"):
        first.check()


def test_of_many_that_want_a_dead_hosts_folder_one_gets_it(run: Path) -> None:
    freeze(take(run, A))
    got: list[object] = []
    start = threading.Barrier(8)

    def want(number: int) -> None:
        start.wait()
        try:
            got.append(take(run, Owner(f"m{number}", number, f"kernel m{number}", 1)))
        except BlockingIOError as error:
            got.append(error)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [one for one in got if isinstance(one, Lease)]
    # A machine under load may let a winner stand still for a lease, and then another one has the folder.
    assert sorted(one.epoch for one in winners) == list(range(2, 2 + len(winners))), got
    last = max(winners, key=lambda one: one.epoch)
    for one in winners:
        one._renewed -= 2 * SECONDS
        with contextlib.nullcontext() if one is last else pytest.raises(RuntimeError):
            one.check()
    assert files(run) == [f".lease-{last.epoch}"] and len(got) == 8


def test_one_that_slept_between_looking_and_taking_gives_way(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(run, A).release()
    create = Lease._create
    others: list[Lease] = []

    def sleepy(self: Lease) -> int:
        if not others:  # two others come and go meanwhile, and then a third stays
            others.append(self)
            monkeypatch.setattr(Lease, "_create", create)
            take(run, B).release()
            others.append(take(run, C))
        return create(self)

    monkeypatch.setattr(Lease, "_create", sleepy)
    with pytest.raises(BlockingIOError, match="process 7 on n3"):
        take(run, A)
    others[1].check()
    assert files(run) == [".lease-3"]


def test_a_listing_that_is_remembered_does_not_hide_a_holder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: a client lists a folder as it was up to a minute ago."""
    take(run, A).release()
    held = take(run, B)
    from common.hosts import lease_file

    stale = iter([[1], [1], [1], [1]])
    list_folder = lease_file.epochs_in
    monkeypatch.setattr(lease_file, "epochs_in", lambda folder: next(stale, None) or list_folder(folder))
    with pytest.raises(BlockingIOError, match="process 7 on n2"):
        take(run, C)
    held.check()


def test_time_without_an_answer_of_the_server_is_no_silence(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, clock = lease._Watch(), [0.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[0])
    found = lease.Found(b"1", A, False)
    heard = []
    for now in (0.0, 4.0, 8.0, 70.0, 74.0, 78.0):
        clock[0] = now
        heard.append(watch.silent_seconds(1, found))
    assert heard == [0.0, 4.0, 8.0, 0.0, 4.0, 8.0]


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b"{}", b'{"host": "n1"}'])
def test_a_damaged_lease_is_waited_for_like_any_other(run: Path, content: bytes) -> None:
    (run / ".lease-6").write_bytes(content)
    held = take(run, B)
    assert held.epoch == 7 and "gave no sign of life" in held.told


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


POINTS = {
    "after the file was made": "lease.write_all = lambda *rest: os._exit(9)",
    "before it clears up": "lease.epochs_in = lambda folder: os._exit(9)",
    "before it renews": "lease.Lease._begin = lambda self: os._exit(9)",
    "in a renewal": "lease.Lease._begin = lambda self: (self._renew(), os._exit(9))",
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_each_point_the_next_one_has_the_folder_after_a_lease(run: Path, point: str) -> None:
    freeze(take(run, A))  # it takes over from a dead host
    code = f"import os; from pathlib import Path; from common.hosts import lease; from common.hosts.lease_file import Owner; {POINTS[point]}; lease.Lease.take(Path({str(run)!r}), patience_seconds=0, owner=Owner('n2', 7, 'kernel 2', 5), silence_seconds=0.2)"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    third = take(run, C)
    assert third.epoch == 3 and files(run) == [".lease-3"]
    third.check()


def test_no_lease_where_locks_hold(tmp_path: Path) -> None:
    held = FolderLock.take(tmp_path)
    held.check()
    assert held.lease is None and held.why == "" and sorted(os.listdir(tmp_path)) == [".lock"]
    held.release()


def test_a_lease_takes_the_place_of_locks_that_there_are_not(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    held = FolderLock.take(run)
    assert held.lease is not None and "the file system has no locks (No locks available)" in held.why
    with pytest.raises(BlockingIOError, match=rf"{run} is in use by process {os.getpid()} on"):
        FolderLock.take(run, patience_seconds=0.0)
    assert holder(run).startswith(f"process {os.getpid()} on")
    held.release()
    FolderLock.take(run).release()


@pytest.mark.parametrize(("options", "seconds"), [("rw,local_lock=all", 30), ("rw,nocto,local_lock=all", 90)])
def test_caches_are_waited_for(
    options: str, seconds: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "mountinfo").write_text(f"65 22 0:55 / {run} rw - nfs server:/home {options}\n")
    monkeypatch.setattr(mounts, "MOUNTS", run / "mountinfo")
    asked: list[float] = []
    take_lease = Lease.take

    def noted(folder: Path, *, silence_seconds: float, **rest: float) -> Lease:
        asked.append(silence_seconds)
        return take_lease(folder, silence_seconds=silence_seconds, **rest)

    monkeypatch.setattr(Lease, "take", noted)
    FolderLock.take(run).release()
    assert asked == [seconds]


def test_a_lease_of_long_ago_is_shown_as_nobodys(run: Path) -> None:
    freeze(take(run, A))
    assert holder(run) == "process 7 on n1"
    old = time.time() - 3600
    os.utime(run / ".lease-1", (old, old))
    assert holder(run) == ""
