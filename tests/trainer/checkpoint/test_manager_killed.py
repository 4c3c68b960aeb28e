"""SIGKILL anywhere in a save: what is found afterwards verifies, or is not seen at all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, which forks: torch is imported once for all deaths, pytest's threads stay out.
SCRIPT = '''
import json, os, random, resource, signal, subprocess, sys, time, types
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[3])
from checkpointed import FakeEngine, Team, make, save
from trainer.checkpoint import folder as folders
from trainer.checkpoint import loading, manager, store
from trainer.checkpoint.saving import verification
from trainer.state import TrainState

torch.set_num_threads(1)
store.FILE_BYTES, store.SLICE_BYTES = 100, 64  # several files, many writes
mode, run_dir = sys.argv[1], Path(sys.argv[2])
draw = random.Random(0)
CALLS = ("write", "fsync", "rename", "replace", "unlink", "mkdir", "open", "rmdir")


def in_child(action):
    """Fork; the child acts and leaves. Returns how it ended."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return child


def inspect(at_least):
    """Whatever the folder shows verifies; resuming loads one whole moment. Returns its step."""
    root = run_dir / "checkpoints"
    for step in folders.steps(root):
        folders.verify(folders.step_folder(root, step))
    engine = FakeEngine()
    state = make(run_dir, keep=2).resume(engine)
    step = state.step if state else 0
    assert step >= at_least, (step, at_least)
    assert not state or (engine.holds(step) and state == TrainState(step, 8 * step, 64 * step))
    return step


def train(first, last, asynchronous, ends=True):
    checkpointer, engine = make(run_dir, keep=2, asynchronous=asynchronous), FakeEngine()
    checkpointer.resume(engine)
    for step in range(first, last):
        save(checkpointer, engine, step)
    checkpointer.close()


def train_ranks(first, last, asynchronous, ends=False):
    """Three ranks as threads: SIGKILL takes them all at once, each wherever it is."""
    team = Team(3)
    def rank_of(rank):
        checkpointer = make(run_dir, rank, team, keep=2, asynchronous=asynchronous)
        engine = FakeEngine(rank, 3)
        checkpointer.resume(engine)
        for step in range(first, last):
            save(checkpointer, engine, step)
        if ends:
            checkpointer.close()
    found = team.run(rank_of)
    assert ends and found == [None] * 3, found


def die_at(call_number):
    """Die by SIGKILL right before the n-th system call of the save."""
    left = [call_number]

    def wrap(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def every_call():
    train(1, 3, asynchronous=False)
    step, deaths = 2, 0
    for number in range(1, 1000):
        def action():
            die_at(number)
            train(step + 1, step + 2, asynchronous=bool(number % 2))
        status = os.waitpid(in_child(action), 0)[1]
        step = inspect(step)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        deaths += 1
    else:
        raise AssertionError("never got through")
    print("deaths", deaths, "step", step)


class Inline:
    """Stands for a thread, and for a pool of them: strace counts the calls of each thread by themselves."""
    def __init__(self, workers=0, target=None, args=(), **rest):
        self.start = lambda: target(*args)
    def is_alive(self):
        return False
    def join(self):
        pass
    def map(self, function, *of):
        return [function(*each) for each in zip(*of)]
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass


def in_one_thread():
    for module in (folders, store, loading, verification):
        module.ThreadPoolExecutor = Inline
    manager.threading = verification.threading = types.SimpleNamespace(Thread=Inline)


def at_system_calls(calls, train):
    """Die as the n-th system call of a kind begins: strace counts, and sends SIGKILL."""
    train(1, 3, asynchronous=False, ends=True)
    step, deaths = 2, 0
    for call in calls.split(","):
        for number in range(1, 1000):
            go, tell = os.pipe()
            def action():
                os.read(go, 1)
                train(step + 1, step + 2, asynchronous=bool(number % 2), ends=True)
            child = in_child(action)
            kills = f"inject={call}:signal=KILL:when={number}"
            strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", kills]
            tracer = subprocess.Popen([*strace, "-p", str(child)])
            while "TracerPid:\\t0" in Path(f"/proc/{child}/status").read_text():
                assert tracer.poll() is None
                time.sleep(0.01)
            os.write(tell, b"x")
            status = os.waitpid(child, 0)[1]
            tracer.wait()
            os.close(go), os.close(tell)
            step = inspect(step)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            deaths += 1
        else:
            raise AssertionError("never got through")
    print("deaths", deaths, "step", step)


def random_times(train):
    step = 0
    for number in range(30):
        ready, tell = os.pipe()
        def action():
            os.write(tell, b"x")
            train(step + 1, 10**9, asynchronous=bool(number % 2))
        child = in_child(action)
        os.read(ready, 1)
        os.close(ready), os.close(tell)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), status
        step = inspect(step)
    print("deaths", 30, "step", step)


def no_room():
    """A limit of the kernel's own, not a patched call: the file cannot grow beyond so many bytes."""
    train(1, 3, asynchronous=False)
    store.FILE_BYTES = 1 << 20
    def action():
        checkpointer, engine = make(run_dir), FakeEngine()
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        try:
            save(checkpointer, engine, 3)
        except RuntimeError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            said = f"checkpoint of step 3 was not saved: {run_dir}: File too large: make room"
            assert said in str(error), error
            return
        raise AssertionError("saved")
    assert os.waitpid(in_child(action), 0)[1] == 0
    print("deaths", 0, "step", inspect(2))


def plant():
    """Save straight into the step's own folder, as one would without thinking of death."""
    from trainer.checkpoint.saving.attempt import Attempt
    init, exists = Attempt.__init__, Path.exists
    def in_place(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.tmp = self.final
    Attempt.__init__ = in_place
    Path.exists = lambda path: path.name[:5] != "step-" and exists(path)


modes = {
    "planted": lambda: (plant(), every_call()),
    "every_call": every_call,
    "random_times": lambda: random_times(train),
    "random_times_of_ranks": lambda: random_times(train_ranks),
    "no_room": no_room,
    "system_calls": lambda: (in_one_thread(), at_system_calls(sys.argv[4], train)),
    "system_calls_of_ranks": lambda: at_system_calls(sys.argv[4], train_ranks),
}
modes[mode]()
'''


def run(mode: str, run_dir: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    helpers = str(Path(__file__).parents[2] / "helpers")
    command = [sys.executable, "-c", SCRIPT, mode, str(run_dir), helpers, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.mark.parametrize(
    ("mode", "deaths"),
    [
        ("every_call", 40),
        pytest.param("random_times", 30, marks=pytest.mark.slow),
        pytest.param("random_times_of_ranks", 30, marks=pytest.mark.slow),
        ("no_room", 0),
    ],
)
def test_killed_while_saving(tmp_path: Path, mode: str, deaths: int) -> None:
    done = run(mode, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    _, counted, _, step = done.stdout.split()
    assert int(counted) >= deaths
    assert int(step) > 0


ALL_CALLS = "rename,fsync,write,mkdir,unlink,unlinkat,rmdir,openat,pread64,preadv"


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize(
    ("mode", "calls", "deaths"),
    [
        ("system_calls", "rename", 3),
        pytest.param("system_calls", ALL_CALLS, 60, marks=pytest.mark.slow),
        pytest.param("system_calls_of_ranks", ALL_CALLS, 40, marks=pytest.mark.slow),
    ],
)
def test_killed_as_a_system_call_begins(tmp_path: Path, mode: str, calls: str, deaths: int) -> None:
    """A resume that reads the manifest, a save, its commit, verified.json and the deletion of the oldest."""
    done = run(mode, tmp_path, calls)
    assert done.returncode == 0, done.stderr[-3000:]
    _, counted, _, step = done.stdout.split()
    assert int(counted) >= deaths
    assert int(step) > 0


def test_the_test_sees_a_save_that_is_not_atomic(tmp_path: Path) -> None:
    done = run("planted", tmp_path)
    assert done.returncode == 1
    assert "not a whole checkpoint" in done.stderr.splitlines()[-1]
