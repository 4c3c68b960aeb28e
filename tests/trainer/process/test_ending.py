"""How a process ends that has imported much: at once, and still in order."""

import subprocess
import sys

PROGRAM = """
import atexit, sys, threading, time
from trainer.process.ending import run_to_the_end

class Kept:
    def __del__(self):
        print("taken apart", file=sys.stderr)

kept = Kept()

def main():
    atexit.register(print, "a library's end")
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread's end"))).start()
    return CODE

run_to_the_end(main)
"""


def end_of(code: str) -> "subprocess.CompletedProcess[str]":
    program = PROGRAM.replace("CODE", code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_threads_and_libraries_end_and_nothing_is_taken_apart() -> None:
    done = end_of("75")
    assert done.returncode == 75
    assert done.stdout == "a thread's end\na library's end\n", "flushed, though it is a pipe"
    assert done.stderr == ""


def test_an_error_ends_as_usual() -> None:
    done = end_of("1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "taken apart" in done.stderr
