"""Several processes as one program: one exit code, one error, signals passed on once, no orphan."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The parent: supervises one rank for each script that it is given.
PARENT = """
import sys
from launch.job import ProcessCommand
from launch.local.supervisor import supervise
grace, stop, *scripts = sys.argv[1:]
answers = "import signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())\\n"
ranks = [ProcessCommand((sys.executable, "-c", answers + script)) for script in scripts]
sys.exit(supervise(ranks, grace_seconds=float(grace), stop_seconds=float(stop)))
"""
SLEEP = "import time; time.sleep(60)"
# Said by a rank whose first step is done: from then on, all may leave, each in its time.
UNDER_WAY = "import os; os.write(int(os.environ['GERMINAL_UNDER_WAY']), b'{rank}\\n')\n"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
POLITE = """
import os, signal, sys, time
def leave(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
os.write(1, b"up\\n")  # a print is under way still when its reader answers: no second one then
time.sleep(60)
"""


def start(*scripts: str, grace: float = 5.0, stop: float = 20.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(grace), str(stop), *scripts],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*scripts: str, grace: float = 5.0) -> tuple[int, str, str]:
    with start(*scripts, grace=grace) as parent:
        out, err = parent.communicate(timeout=30)
    return parent.returncode, out, err


def test_all_done_is_zero_and_output_is_told_apart() -> None:
    code, out, err = finish("print('hello')", "print('hello')", "import sys; sys.stderr.write('half a line')")
    assert code == 0
    assert out == "hello\n"  # rank 0 keeps standard output as it is
    assert sorted(err.splitlines()) == ["[rank 1] hello", "[rank 2] half a line"]


def test_one_rank_alone_speaks_as_itself() -> None:
    code, out, err = finish(
        "import sys; print('out'); print('a warning', file=sys.stderr); sys.exit('error: no')"
    )
    assert (code, out, err) == (1, "out\n", "a warning\nerror: no\n")


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_and_75_comes_back(number: signal.Signals) -> None:
    script = POLITE.replace("SIGTERM", number.name)
    with start(*(UNDER_WAY.format(rank=rank) + script for rank in (0, 1))) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        assert parent.stderr.readline() == "[rank 1] up\n"
        parent.send_signal(number)
        out, err = parent.communicate(timeout=20)
    assert (parent.returncode, out, err) == (75, "saved\n", "[rank 1] saved\n")


def test_a_second_interrupt_kills_and_a_second_request_to_stop_does_not() -> None:
    with start(STUBBORN, STUBBORN, grace=60.0) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        parent.stdout.readline(), parent.stderr.readline()
        for _ in range(3):  # as SLURM does: the request is the same
            parent.send_signal(signal.SIGTERM)
        parent.send_signal(signal.SIGINT)
        parent.send_signal(signal.SIGINT)  # of the same key press
        time.sleep(1.0)
        assert parent.poll() is None
        parent.send_signal(signal.SIGINT)
        parent.communicate(timeout=20)
    assert parent.returncode == 130


ASKED = "import sys; print('error: asked to stop: nothing was under way', file=sys.stderr); sys.exit({code})"


@pytest.mark.parametrize("code", [75, 130])
def test_a_rank_that_leaves_before_all_are_under_way_takes_the_others_along(code: int) -> None:
    """What the others then say is of its doing."""
    effect = "import sys, time; time.sleep(0.5); print('error: peer gone', file=sys.stderr); sys.exit(1)"
    result, _, err = finish(effect, ASKED.format(code=code), SLEEP, grace=3.0)
    assert (result, err) == (code, "error: asked to stop: nothing was under way\n")


def test_ranks_that_are_under_way_leave_together_each_in_its_time() -> None:
    begin = UNDER_WAY + "import sys, time; "
    scripts = [begin.format(rank=rank) + f"time.sleep({2 * rank}); sys.exit(75)" for rank in (0, 1)]
    scripts[1] = scripts[1].replace("sys.exit", "print('told the tracker'); sys.exit")
    assert finish(*scripts, grace=0.3) == (75, "", "[rank 1] told the tracker\n")


def test_a_rank_that_sigterm_ends_before_it_can_answer_was_asked_to_stop() -> None:
    code, _, err = finish(SLEEP, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert (code, err) == (75, "error: asked to stop before the first step: nothing was under way\n")


def children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_stopped_rank_is_woken_to_answer() -> None:
    with start(*(UNDER_WAY.format(rank=rank) + POLITE for rank in (0, 1))) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        assert parent.stderr.readline() == "[rank 1] up\n"
        for child in children(parent.pid):
            os.kill(child, signal.SIGSTOP)
        time.sleep(0.3)
        parent.terminate()
        assert parent.wait(timeout=10) == 75


def test_a_rank_that_does_not_answer_a_request_to_stop_is_killed_and_named() -> None:
    polite = POLITE.replace("sys.exit(75)", "time.sleep(60)")
    with start(polite, STUBBORN, stop=1.0) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "up\n"
        assert parent.stderr.readline() == "[rank 1] up\n"
        began = time.monotonic()
        parent.terminate()
        _, err = parent.communicate(timeout=15)
    assert parent.returncode == 1 and time.monotonic() - began < 10
    assert "error: asked to stop, and rank 0, 1 did not answer within 1 s: killed" in err


def test_ended_by_the_signal_before_it_could_answer_is_75() -> None:
    """A rank inside torch's rendezvous runs no handler: there was nothing to save."""
    with start(SLEEP, SLEEP) as parent:
        while len(children(parent.pid)) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        parent.terminate()
        _, err = parent.communicate(timeout=15)
    assert parent.returncode == 75 and err.count("error: ") == 1 and "nothing was under way" in err


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


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    say_pid = f"import os, time; open(f'{tmp_path}/{{os.getpid()}}', 'w').close(); time.sleep(60)"
    with start(say_pid, say_pid) as parent:
        pids: list[int] = []
        deadline = time.monotonic() + 20
        while len(pids) < 2 and time.monotonic() < deadline:
            pids = [int(path.name) for path in tmp_path.iterdir()]
            time.sleep(0.02)
        assert len(pids) == 2
        parent.kill()
        parent.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # a zombie has ended; only init has not collected it yet
