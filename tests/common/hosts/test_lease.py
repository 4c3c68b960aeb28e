"""A folder held by a lease: hosts are played by owners of other names, processes of kernels elsewhere."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.hosts import lease
from common.hosts.lease import Lease
from common.hosts.lease_file import Owner, holder

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


def test_of_two_that_have_both_seen_the_folder_free_one_gets_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(run, A).release()
    both, create = threading.Barrier(2), Lease._create
    got: list[object] = []

    def together(self: Lease) -> int:
        if self.epoch == 2:
            both.wait(60)
        return create(self)

    def want(owner: Owner) -> None:
        try:
            got.append(take(run, owner).epoch)
        except BlockingIOError as error:
            got.append(str(error))

    monkeypatch.setattr(Lease, "_create", together)
    threads = [threading.Thread(target=want, args=(owner,)) for owner in (B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(2) == 1, got


def test_a_number_that_was_given_twice_is_told_by_its_mark(run: Path) -> None:
    """Somebody has removed the files of the lease."""
    first = take(run, A)
    freeze(first)
    (run / ".lease-1").unlink()
    second = take(run, B)
    assert first.epoch == second.epoch
    wake(first)
    first._renewed -= 2 * SECONDS
    with pytest.raises(RuntimeError, match="taken over"):
        first.check()
    second._renewed -= 2 * SECONDS
    second.check()


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


def test_a_lease_of_long_ago_is_shown_as_nobodys(run: Path) -> None:
    freeze(take(run, A))
    assert holder(run) == "process 7 on n1"
    old = time.time() - 3600
    os.utime(run / ".lease-1", (old, old))
    assert holder(run) == ""
