"""Workers that share a machine tokenise with one thread each; a process that works alone may use more.

Without that, a machine of n cores would have n² threads at work. Each case is a process of its own, with an
environment that allows three threads: the tokenizer's library reads it once in a process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

THREADS = 3

TASK = """
import os

from data.prepare.units import Unit
from data.tokenizer.encoder import Encoder
from data.tokenizer.loading import given

def started_threads(folder, task, advance):
    before = len(os.listdir("/proc/self/task"))
    Encoder(given("bytes")).each([f"text {number}" for number in range(64)])
    started = len(os.listdir("/proc/self/task")) - before
    (folder / f"task{task.number}").write_text(str(started))

TASKS = [Unit(number, ()) for number in range(8)]
"""

ON = {
    "two local processes": "local.run_tasks(2, task.started_threads, folder, task.TASKS, print)",
    "a process of Ray's": """on_ray._task(
        (same_everywhere.leave(folder), task.started_threads, folder), task.TASKS[0])""",
    "the command's own process": "local.run_tasks(1, task.started_threads, folder, task.TASKS, print)",
}

SCRIPT = """
import sys
from pathlib import Path
import task
from data.prepare.engines import local, on_ray, same_everywhere
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    {}
"""


@pytest.mark.parametrize(
    ("on", "threads"),
    [("two local processes", 1), ("a process of Ray's", 1), ("the command's own process", THREADS)],
)
def test_threads_that_the_tokenizer_starts(tmp_path: Path, on: str, threads: int) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "script.py").write_text(SCRIPT.format(ON[on]))
    (tmp_path / "found").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"RAYON_NUM_THREADS": str(THREADS), "PYTHONPATH": f"{os.getcwd()}:{tmp_path}"}
    command = [sys.executable, tmp_path / "script.py", tmp_path / "found"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    # Of a process's tasks the first one starts the threads.
    assert max(int(path.read_text()) for path in (tmp_path / "found").glob("task*")) == threads
