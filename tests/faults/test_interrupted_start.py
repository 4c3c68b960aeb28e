"""Ctrl-C and SIGTERM before there is anything to save: one line and the right exit code, no traceback."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from whole_runs import GERMINAL, environment, make_corpus, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return write_config(folder, make_corpus(folder), train__steps=100_000)


def as_on_a_terminal() -> None:
    """A suite that a script runs in the background has SIGINT ignored, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# Seconds after the launcher's first line: in Python's start, in torch's import, in the rendezvous.
@pytest.mark.parametrize(
    "after", [pytest.param(0.0, marks=pytest.mark.slow), 0.3, pytest.param(0.9, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
@pytest.mark.parametrize("nproc", [1, 2])
def test_one_line(nproc: int, number: signal.Signals, code: int, after: float, config: Path) -> None:
    command = [GERMINAL, "train", str(config), "--nproc", str(nproc)]
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=as_on_a_terminal
    ) as run:
        try:
            assert run.stderr is not None
            assert "starting" in run.stderr.readline()
            time.sleep(after)
            run.send_signal(number)
            _, err = run.communicate(timeout=30)
        finally:
            run.kill()
    assert run.returncode == code, err
    assert "Traceback" not in err and err.count("error: ") <= 1, err
    assert code == 75 or err.count("error: ") == 1, err
