"""Several processes as one program: one exit code, one error, output told apart."""

import contextlib
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from supervised import PARENT, SLEEP, STUBBORN, finish


def test_all_done_is_zero_and_output_is_told_apart() -> None:
    code, out, err = finish("print('hello')", "print('hello')", "import sys; sys.stderr.write('half a line')")
    assert code == 0
    assert out == "hello\n"  # rank 0 keeps standard output as it is
    assert sorted(err.splitlines()) == ["[rank 1] hello", "[rank 2] half a line"]


def test_one_rank_alone_has_no_prefix() -> None:
    code, out, err = finish(
        "import sys; print('out'); print('a warning', file=sys.stderr); sys.exit('error: no')"
    )
    assert (code, out, err) == (1, "out\n", "a warning\nerror: no\n")


def test_a_progress_bar_without_an_end_is_neither_kept_whole_nor_lost() -> None:
    bar = "import sys\nfor at in range(20000): sys.stderr.write(f'\\r{at:05d} ' + '#' * 100)\n"
    code, _, err = finish(bar, bar + "sys.stderr.write('x' * 200000)")
    assert code == 0
    assert [len(line) for line in err.splitlines() if line.startswith("[rank 0]")] == [9 + 106]
    long = [line for line in err.splitlines() if line.startswith("[rank 1]")]
    assert len(long) > 1 and "".join(line.removeprefix("[rank 1] ") for line in long).endswith("x" * 200000)
    assert max(map(len, long)) < 1 << 18


@pytest.mark.parametrize("code", [1, 2, 3])
def test_the_first_failure_decides_and_its_error_is_shown_once(code: int) -> None:
    fail = f"import sys; print('error: the disk is full', file=sys.stderr); sys.exit({code})"
    late = "import sys, time; time.sleep(0.5); print('error: peer gone', file=sys.stderr); sys.exit(1)"
    began = time.monotonic()
    result, _, err = finish(late, fail, SLEEP)
    assert (result, err) == (code, "error: the disk is full\n")
    assert time.monotonic() - began < 30  # the sleeper was asked to end, not waited for


def test_the_error_that_came_first_wins_over_the_exit_that_came_first() -> None:
    cause = (
        "import sys, time; print('error: the cause', file=sys.stderr, flush=True); time.sleep(1); sys.exit(1)"
    )
    effect = "import sys, time; time.sleep(0.4); print('error: the effect', file=sys.stderr); sys.exit(3)"
    assert finish(effect, cause)[::2] == (1, "error: the cause\n")


def test_a_traceback_is_shown_whole_and_for_one_rank() -> None:
    code, _, err = finish("1 / 0", "1 / 0", "1 / 0")
    assert code == 1
    assert err.count("ZeroDivisionError") == 1
    assert all(line.startswith("[rank ") for line in err.splitlines())


def test_a_silent_failure_is_named() -> None:
    assert finish("import sys; sys.exit(4)", "pass")[::2] == (
        4,
        "error: rank 0 ended with exit code 4 and said nothing\n",
    )


def test_a_rank_whose_output_nobody_reads_ends_all_without_a_line() -> None:
    unread = "import signal, sys, time; signal.signal(15, lambda *a: sys.exit(141)); time.sleep(600)"
    peer = "import sys, time; time.sleep(1); print('error: peer gone', file=sys.stderr); sys.exit(1)"
    assert finish(unread, peer)[::2] == (141, "")
    assert finish("import sys; sys.exit(141)")[::2] == (141, "")


def test_a_killed_rank_is_a_failure_that_names_the_signal() -> None:
    code, _, err = finish(SLEEP, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 1
    assert err.startswith("error: rank 1 was ended by SIGKILL")


DIES_UNSEEN = """
import os, signal, sys
with open("{file}", "w") as file:
    file.write(f"{{os.getpid()}} ")
os.kill(os.getppid(), signal.SIGSTOP)
while open(f"/proc/{{os.getppid()}}/stat").read().rpartition(")")[2].split()[0] != "T":
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""
MISSES_IT = """
import os, signal, sys, time
def read(path):
    return open(path).read() if os.path.exists(path) else ""
while not read("{file}").endswith(" "):
    time.sleep(0.01)
while read(f"/proc/{{int(read('{file}'))}}/stat").rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
print("error: rank 1 does not answer", file=sys.stderr, flush=True)
os.kill(os.getppid(), signal.SIGCONT)
sys.exit(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_killed_rank_is_named_before_one_that_misses_it(tmp_path: Path) -> None:
    """Also where this process was too busy to see the one before the other."""
    code, _, err = finish(*(script.format(file=tmp_path / "pid") for script in (MISSES_IT, DIES_UNSEEN)))
    assert code == 1
    assert err.startswith("error: rank 1 was ended by SIGKILL") and err.count("error: ") == 1, err


def test_a_rank_that_will_not_end_is_killed_after_the_grace() -> None:
    began = time.monotonic()
    code, _, err = finish(STUBBORN, "import sys, time; time.sleep(0.5); sys.exit('error: no')", grace=1.0)
    assert (code, err) == (1, "error: no\n")
    assert 1.0 < time.monotonic() - began < 8


def test_an_error_that_was_not_the_end_is_shown_as_said() -> None:
    code, _, err = finish(
        "import sys; print('Traceback (most recent call last): in a thread', file=sys.stderr)", "pass"
    )
    assert (code, err) == (0, "[rank 0] Traceback (most recent call last): in a thread\n")


def test_on_a_terminal_rank_0_draws_and_one_error_is_shown() -> None:
    draw = """
import sys, time
assert sys.stderr.isatty()
for step in range(3):
    sys.stderr.write(f"\\rstep {step}")
    sys.stderr.flush()
    time.sleep(0.1)
sys.stderr.write("\\nerror: it broke\\n")
sys.exit(1)
"""
    ours, theirs = os.openpty()
    other = "import sys, time; assert not sys.stderr.isatty(); time.sleep(1); sys.exit('error: it broke')"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "5", "20", draw, other], stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while chunk := os.read(ours, 4096):
            seen += chunk
    os.close(ours)
    assert parent.wait(timeout=20) == 1
    assert seen == b"\rstep 0\rstep 1\rstep 2\r\n\r\x1b[2Kerror: it broke\r\n\x1b[?25h"


def test_a_terminals_new_size_reaches_rank_0() -> None:
    tell = """
import os, sys, time
before = os.get_terminal_size(2).columns
print(before, file=sys.stderr, flush=True)
while os.get_terminal_size(2).columns == before:
    time.sleep(0.01)
print(os.get_terminal_size(2).columns, file=sys.stderr, flush=True)
"""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "5", "20", tell], stderr=theirs)
    seen = b""
    while b"80" not in seen:
        seen += os.read(ours, 4096)
    termios.tcsetwinsize(theirs, (24, 132))
    parent.send_signal(signal.SIGWINCH)  # as the kernel does to the terminal's foreground processes
    assert parent.wait(timeout=20) == 0
    assert b"132" in os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
