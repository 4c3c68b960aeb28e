"""Who reads standard error is gone (Ctrl-C ends `tee`, too): signals are answered, saved is what would be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from whole_runs import GERMINAL, environment, make_corpus, newest, whole_steps, write_config

# Starts a rank as launchers do, and reads what it says.
LAUNCHER = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-P", "-m", "trainer", sys.argv[1]], stderr=subprocess.PIPE)
print(rank.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    changes = {"train__steps": 100_000, "train__eval_every": 1, "checkpoint__every": 0}
    return write_config(tmp_path, make_corpus(tmp_path, documents=20), **changes)


@contextmanager
def unread(config: Path) -> Iterator["subprocess.Popen[str]"]:
    """A rank whose reader goes after the first line."""
    with subprocess.Popen(
        [GERMINAL, "train", str(config)],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    ) as rank:
        assert rank.stderr is not None
        assert "starting" in rank.stderr.readline()
        rank.stderr.close()
        try:
            yield rank
        finally:
            rank.kill()


def test_an_interrupt_before_the_first_step(config: Path) -> None:
    with unread(config) as rank:
        rank.send_signal(signal.SIGINT)
        assert rank.wait(timeout=60) == 130


def test_an_interrupt_saves(config: Path) -> None:
    run, by = config.with_name("run"), time.monotonic() + 120
    with unread(config) as rank:
        while whole_steps(run / "metrics.jsonl") < 3:
            assert rank.poll() is None and time.monotonic() < by
            time.sleep(0.02)
        rank.send_signal(signal.SIGINT)
        assert rank.wait(timeout=60) == 130
    assert newest(run).is_dir()


def test_an_orphan_whose_launcher_was_its_reader_ends(config: Path) -> None:
    run, by = config.with_name("run"), time.monotonic() + 120
    env = environment() | {"TORCHELASTIC_RUN_ID": "none"}
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(config)], env=env, stdout=subprocess.PIPE, text=True
    ) as launcher:
        try:
            assert launcher.stdout is not None
            rank = int(launcher.stdout.readline())
            while not whole_steps(run / "metrics.jsonl"):
                assert time.monotonic() < by
                time.sleep(0.02)
        finally:
            launcher.kill()
    try:
        while Path(f"/proc/{rank}/exe").exists():
            assert time.monotonic() < by, "the orphan goes on"
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
