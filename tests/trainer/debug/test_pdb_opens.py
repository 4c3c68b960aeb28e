"""pdb opens where torch has raised: on the terminal of one process; at a socket for one rank of several."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from terminal import Terminal

from whole_runs import GERMINAL

WRONG_SHAPE = """
import sys
from trainer.models.layers.feed_forward import FeedForward

def forward(self, x):
    cut = x[..., :-1]
    return self.w2(self.w1(cut))

FeedForward.forward = forward
"""
HERE = "from launch import cli; sys.exit(cli.main(sys.argv[1:]))"


def test_pdb_opens_at_torchs_frame(trained: Path, tmp_path: Path) -> None:
    terminal = Terminal("-c", WRONG_SHAPE + HERE, "train", str(trained), "--debug", "--out", str(tmp_path))
    try:
        before = terminal.read(b"(Pdb) ", seconds=120).decode()
        assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x31 and 32x" in before
        assert re.search(r"> .*torch/nn/modules/linear.py\(\d+\)forward\(\)", before)
        terminal.type("up 3")
        terminal.read(b"(Pdb) ", seconds=60)
        terminal.type("p tuple(cut.shape)")
        assert b"(2, 32, 31)" in terminal.read(b"(Pdb) ", seconds=60)
        terminal.type("q")
        said = terminal.read(b"w1\r\n", seconds=60).decode()
        assert "error: mat1 and mat2 shapes" in said and "raised in the module layers.0.mlp.w1" in said
        assert terminal.wait() == 1
    finally:
        terminal.close()


@pytest.mark.slow
def test_ctrl_c_opens_pdb_in_one_process(trained: Path, tmp_path: Path) -> None:
    program = "import sys; from launch.entry import main; sys.argv[0] = 'germinal'; sys.exit(main())"
    words = ("train", str(trained), "--debug", "--steps", "1000000", "--out", str(tmp_path))
    terminal = Terminal("-c", program, *words)
    try:
        terminal.read(b"step 6:", seconds=120)
        terminal.interrupt()
        assert b"KeyboardInterrupt" in terminal.read(b"(Pdb) ", seconds=60)
        terminal.type("q")
        terminal.read(seconds=1)
        assert terminal.wait() == 130
    finally:
        terminal.close()


FAILS = """
import sys
from pathlib import Path
from trainer.debug.debugger import choose
debugger = choose(1, 2, sockets=Path(sys.argv[1]), only=1)
for number in range(2):
    breakpoint()
try:
    {}["key"]
except KeyError as error:
    debugger.post_mortem(error)
print("over", number)
"""


class Typist:
    """The other side of a rank's socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + 60
        while self._socket.connect_ex(str(path)) and time.monotonic() < end:
            time.sleep(0.01)

    def type(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    def read(self, until: bytes = b"(Pdb) ") -> str:
        """All that comes up to `until`, or to the end of the connection."""
        shown = b""
        self._socket.settimeout(60)
        while until not in shown and (more := self._socket.recv(1 << 16)):
            shown += more
        return shown.decode()


def test_a_rank_of_several_is_debugged_at_a_socket(tmp_path: Path) -> None:
    rank = subprocess.Popen(
        [sys.executable, "-c", FAILS, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for number in range(2):
            typist = Typist(tmp_path / "rank-1")
            assert "--- rank-1 ---" in typist.read()
            typist.type("p number")
            assert typist.read() == f"{number}\n(Pdb) "
            typist.type("c")
            assert typist.read() == ""  # it has hung up
        typist = Typist(tmp_path / "rank-1")
        assert "KeyError: 'key'" in typist.read()
        typist.type("q")
        out, err = rank.communicate(timeout=60)
        assert (out, rank.returncode) == ("over 1\n", 0)
        assert err.count(f"is in pdb: germinal attach {tmp_path}/rank-1\n") == 3
        assert [path.name for path in tmp_path.iterdir()] == ["left"]
    finally:
        rank.kill()
        rank.wait()


@contextmanager
def wrong_shape_everywhere(folder: Path) -> Iterator[str]:
    """The PYTHONPATH of processes in which the model's shapes do not fit."""
    (folder / "sitecustomize.py").write_text(
        f"import sys\nif 'trainer.debug.command' in sys.orig_argv:\n    exec({WRONG_SHAPE!r})\n"
    )
    yield ":".join((str(folder), *filter(None, sys.path)))


@pytest.mark.slow
def test_ranks_get_the_terminal_one_after_another(trained: Path, tmp_path: Path) -> None:
    with wrong_shape_everywhere(tmp_path) as path:
        words = ("train", str(trained), "--debug", "--nproc", "2", "parallel.tp=2", "--debug-rank", "1")
        words = (*words, "--out", str(tmp_path / "out"))
        terminal = Terminal("-c", f"import sys; {HERE}", *words, PYTHONPATH=path)
        try:
            before = terminal.read(b"(Pdb) ", seconds=120).decode()
            assert "--- rank-1 ---" in before and "torch/nn/modules/linear.py" in before
            terminal.type("up 3")
            terminal.read(b"(Pdb) ", seconds=60)
            terminal.type("p tuple(cut.shape)")
            assert b"(2, 32, 31)" in terminal.read(b"(Pdb) ", seconds=60)
            terminal.type("q")
            assert terminal.wait() == 1
        finally:
            terminal.close()


@pytest.mark.slow
def test_under_torchrun_one_chosen_rank_is_debugged(trained: Path, tmp_path: Path) -> None:
    with wrong_shape_everywhere(tmp_path) as path:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        torchrun += [
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "127.0.0.1:0",
            "--no-python",
            GERMINAL,
        ]

        agent = subprocess.Popen(
            [
                *torchrun,
                "rank",
                str(trained),
                "--debug",
                "--debug-rank",
                "1",
                "parallel.tp=2",
                f"--out={tmp_path}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert agent.stderr is not None
        try:
            told = next(line for line in agent.stderr if "germinal attach" in line)
            typist = Typist(Path(told.split()[-1]))
            assert "torch/nn/modules/linear.py" in typist.read()
            typist.type("q")
            agent.stderr.read()
            assert agent.wait(timeout=60) == 1
        finally:
            agent.kill()
            agent.wait()
