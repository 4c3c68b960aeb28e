"""`prepare` as a process of its own that is killed: no byte changes, and no worker stays behind."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.processes import stat
from prepared import tree, write_texts

pytestmark = pytest.mark.usefixtures("no_pictures")


SCRIPT = """
import sys
from pathlib import Path
from data.prepare.prepare import prepare
from data.prepare.recipe import Recipe
if __name__ == "__main__":
    prepare([sys.argv[1]], Path(sys.argv[2]), train_tokenizer=500, heldout=0.1, workers=2, progress=False,
            recipe=Recipe(shard_bytes=64 << 10, deduplicate="exact"))
"""


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_changes_no_byte(kills: int, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", count=900)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def start(out: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, script, tmp_path / "texts", tmp_path / out],
            stderr=subprocess.PIPE,
            cwd=os.getcwd(),
        )

    def written(out: str) -> int:
        """Bytes so far, of finished files and others."""
        found = 0
        for folder, _, names in os.walk(tmp_path / out):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    found += os.stat(os.path.join(folder, name)).st_size
        return found

    process = start("whole")
    # Not `wait`: a script that fails with a long message would wait for ever for a reader of it.
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error.decode()
    whole, most = tree(tmp_path / "whole"), written("whole")
    rng = random.Random(7)
    killed = 0
    for attempt in range(kills):
        process = start("killed")
        # By how far it is and not by the clock: how long a start takes depends on what else runs.
        at = written("killed") + most * rng.uniform(0.01, 0.3)
        while process.poll() is None and written("killed") < at:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        killed += process.returncode == -signal.SIGKILL
        if (tmp_path / "killed/train/manifest.json").exists():
            assert tree(tmp_path / "killed") == whole, (
                f"attempt {attempt} left a corpus that only looks whole"
            )
    assert killed
    process = start("killed")
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error.decode()
    assert tree(tmp_path / "killed") == whole


def test_no_worker_outlives_a_killed_prepare(tmp_path: Path) -> None:
    """A worker whose parent is gone would wait for work for ever."""
    write_texts(tmp_path / "texts", count=900)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "texts", tmp_path / "out"], cwd=os.getcwd()
    )
    units = tmp_path / "out/.prepare/units"
    deadline = time.monotonic() + 240
    while not (units.exists() and any(units.iterdir())) and time.monotonic() < deadline:
        assert process.poll() is None, f"the script ended with {process.returncode} before it made a unit"
        time.sleep(0.01)
    family = descendants(process.pid)
    assert len(family) >= 3  # the fork server and two workers
    process.kill()
    process.wait()
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, family))


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    found = stat(pid)
    return found is not None and not found.has_ended
