"""What the batch step prints reaches the job's output, and waits for no disk."""

import os
import subprocess
import sys
import time

PROGRAM = """
import os
from launch.cluster.batch.job_output import written_by_a_thread
with written_by_a_thread():
    for number in range(20_000):
        os.write(2, f"line {number:05d} {'x' * 60}\\n".encode())
    print("all is printed", flush=True)
os.write(2, b"afterwards\\n")
"""


def start(errors: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=errors)


def test_all_lines_come_in_order() -> None:
    with start(subprocess.PIPE) as process:
        _, said = process.communicate(timeout=60)
    lines = said.decode().splitlines()
    assert [line.split(" x")[0] for line in lines[:-1]] == [f"line {n:05d}" for n in range(20_000)]
    assert lines[-1] == "afterwards"


def test_a_file_that_takes_nothing_keeps_nobody() -> None:
    reader, writer = os.pipe()  # which nobody reads
    began = time.monotonic()
    with start(writer) as process:
        assert process.stdout is not None and process.stdout.readline() == b"all is printed\n"
        assert process.wait(30) == 0
    assert time.monotonic() - began < 30
    os.close(writer)
    assert os.read(reader, 100).startswith(b"line 00000 ")
    os.close(reader)
