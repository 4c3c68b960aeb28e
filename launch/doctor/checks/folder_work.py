"""What a run does with files, tried in a folder: durable writes, locks, appends, renames, mapped reads."""

import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.files import write_atomically, write_durably
from common.lock import take_lock
from launch.doctor.finding import Finding, ok, warning

PIECE_BYTES = 8 << 20
PIECES = 8
SLOW_BYTES_A_SECOND = 30e6
SLOW_FSYNC_SECONDS = 0.1
SMALL_WRITES = 10
APPENDS = 300
REPLACEMENTS = 300
BYTES_A_PARAMETER = 12  # of a checkpoint: fp32 weights and AdamW's two moments

LEASE = "until then a lease keeps a second start out (docs/stopping.md): after a host was lost, half a minute"


def check(place: Path, told: Path, *, has_room: bool) -> Iterator[Finding]:
    """Try everything in the empty folder `place`; messages name `told`. Large files where there is room."""
    yield from latency(place, told)
    if has_room:
        yield from throughput(place, told)
    yield from locks(place, told)
    yield from appends(place, told)
    yield from renames(place, told)
    yield from mapped(place, told)
    yield from cases(place, told)


def latency(place: Path, told: Path) -> Iterator[Finding]:
    """How long a small durable write takes: every event and every line of the metrics waits for that."""
    seconds = []
    for _ in range(SMALL_WRITES):
        began = time.monotonic()
        write_durably(place / "small", b"x" * 100)
        seconds.append(time.monotonic() - began)
        if sum(seconds) > 3:
            break
    middle = statistics.median(seconds)
    text = f"{told}: a small durable write (fsync) takes {middle * 1e3:.2g} ms"
    if middle > SLOW_FSYNC_SECONDS:
        remedy = "choose a folder on a faster disk, or ask who else loads it; lower train.log_every and saves"
        yield warning("folder.fsync", text, remedy, measured={"fsync_seconds": middle})
    else:
        yield ok("folder.fsync", text, measured={"fsync_seconds": middle})


def throughput(place: Path, told: Path) -> Iterator[Finding]:
    """How fast a large file is written and on the disk, as a checkpoint's are."""
    piece = os.urandom(PIECE_BYTES)
    began = time.monotonic()
    with (place / "large").open("wb", buffering=0) as file:
        for _ in range(PIECES):
            file.write(piece)
            os.fsync(file.fileno())
            if time.monotonic() - began > 5:
                break
        written = file.tell()
    rate = written / (time.monotonic() - began)
    (place / "large").unlink()
    text = f"{told}: durable writes at {rate / 1e6:,.0f} MB/s"
    measured = {"write_bytes_per_second": rate}
    if rate < SLOW_BYTES_A_SECOND:
        minutes = BYTES_A_PARAMETER * 1e9 / rate / 60
        text += f": a checkpoint of 10⁹ parameters takes {minutes:.0f} min"
        yield warning(
            "folder.write", text, "choose a folder on a faster disk, or save less often", measured=measured
        )
    else:
        yield ok("folder.write", text, measured=measured)


def locks(place: Path, told: Path) -> Iterator[Finding]:
    """A lock (flock) has to keep a second process out; a run holds one on its folder."""
    try:
        held = take_lock(place / "lock", patience_seconds=0)
    except OSError as problem:
        text = f"{told}: the file system has no locks ({problem.strerror})"
        yield warning("folder.lock", text, f"choose a file system with locks; {LEASE}")
        return
    try:
        refused = in_another_process(lambda: _is_refused(place / "lock"))
    finally:
        os.close(held)
    if refused:
        yield ok("folder.lock", f"{told}: a lock keeps a second process out")
    else:
        text = f"{told}: a second process got a lock that another one held"
        yield warning("folder.lock", text, f"choose a file system with locks; {LEASE}")


def _is_refused(path: Path) -> bool:
    try:
        take_lock(path, patience_seconds=0)
    except BlockingIOError:
        return True
    return False


def appends(place: Path, told: Path) -> Iterator[Finding]:
    """Lines that two processes append to one file have to come out whole, all of them."""
    file = place / "appended"
    file.touch()
    done = in_two_processes(lambda name: append_lines(file, name))
    lost, torn = count_lines(file, ("a", "b"))
    if done and not lost and not torn:
        yield ok("folder.append", f"{told}: {2 * APPENDS} lines of two processes are whole")
    else:
        text = (
            f"{told}: of {2 * APPENDS} lines that two processes appended {lost} are lost and {torn} are torn"
        )
        yield warning(
            "folder.append", text, "choose a folder on another file system: records of a run may be damaged"
        )


def append_lines(file: Path, name: str) -> bool:
    """Append `APPENDS` lines that begin with `name`, each by one write."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(APPENDS):
        os.write(descriptor, line_of(name, number))
    os.close(descriptor)
    return True


def line_of(name: str, number: int) -> bytes:
    return f"{name} {number} {'.' * 150} {name}\n".encode()


def count_lines(file: Path, names: tuple[str, ...]) -> tuple[int, int]:
    """(lost, torn) lines of a file to which each of `names` appended its lines."""
    found = file.read_bytes().splitlines(keepends=True)
    expected = {line_of(name, number) for name in names for number in range(APPENDS)}
    return len(expected - set(found)), sum(line not in expected for line in found)


def renames(place: Path, told: Path) -> Iterator[Finding]:
    """A file that a rename replaces must be there at every moment, old or new: checkpoints rely on that."""
    file = place / "replaced"
    contents = (b"a" * 5000, b"b" * 5000)
    file.write_bytes(contents[0])
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        wrong = 0
        os.close(theirs)
        os.set_blocking(ours, False)
        while _is_open(ours):
            try:
                wrong += file.read_bytes() not in contents
            except OSError:
                wrong += 1
        os._exit(min(wrong, 100))
    os.close(ours)
    for number in range(REPLACEMENTS):
        (place / "draft").write_bytes(contents[number % 2])
        os.replace(place / "draft", file)
    os.close(theirs)
    wrong = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    write_atomically(file, contents[1])
    if wrong == 0 and file.read_bytes() == contents[1]:
        yield ok("folder.rename", f"{told}: a rename replaces a file in one step")
    else:
        text = (
            f"{told}: while {REPLACEMENTS} renames replaced a file, {wrong} reads found it missing or partial"
        )
        yield warning(
            "folder.rename", text, "choose a folder on another file system: a commit may be seen half done"
        )


def _is_open(descriptor: int) -> bool:
    try:
        return os.read(descriptor, 1) != b""
    except BlockingIOError:
        return True


def mapped(place: Path, told: Path) -> Iterator[Finding]:
    """Shards are read through memory maps, which some file systems refuse."""
    (place / "mapped").write_bytes(b"germinal")
    try:
        with (
            (place / "mapped").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            assert view[:] == b"germinal"
    except OSError as problem:
        text = f"{told}: files cannot be mapped into memory ({problem.strerror})"
        yield warning("folder.mapped", text, "keep corpora on another file system")


def cases(place: Path, told: Path) -> Iterator[Finding]:
    """Names that differ in case only have to be two names."""
    (place / "case").touch()
    if (place / "CASE").exists():
        text = f"{told}: names that differ in case only are one file"
        yield warning("folder.case", text, "do not give two runs or two sources such names")


def in_two_processes(work: Callable[[str], bool]) -> bool:
    """Whether `work` succeeded with the names a, in a child, and b, here, at the same time."""
    child = os.fork()
    if not child:
        try:
            os._exit(not work("a"))
        finally:
            os._exit(1)
    here = work("b")
    return os.waitpid(child, 0)[1] == 0 and here


def in_another_process(work: Callable[[], bool]) -> bool:
    """What `work` returns in a child."""
    child = os.fork()
    if not child:
        try:
            os._exit(not work())
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
